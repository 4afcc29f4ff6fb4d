//! A program's work on a simulated card, for tests of shares and priorities in pods: kernels without a pause, or one now
//! and then whose time is told.
//!
//! All figures are the card's own: kernels take exactly the time that their image says, and delays come from the
//! driver's events. So a busy host makes a program do less, but does not make a figure wrong.

#![allow(unsafe_code, reason = "calls a C library by its published signatures")]
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::time::{Duration, Instant};

use libloading::{Library, Symbol};
use serde_json::json;

type Handle = *mut c_void;

/// What a program does until it is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Launches without a pause. Every 100 ms a line `{"at_ns", "work_ns"}`: the system's monotonic clock, and the work
    /// that was launched so far.
    Busy {
        /// Length of a kernel in microseconds.
        kernel_us: u64,
    },
    /// Two kernels, the second launched while the first is on the card, with a pause behind each pair. After every `count`
    /// pairs a line `{"count", "ahead", "between"}`, both `{"p50_us", "p90_us", "p99_us", "most_us"}` on the card's clock:
    /// how long the first waited from the wish to launch it, and how long the second because somebody else launched
    /// meanwhile.
    Paced {
        /// Length of a kernel in microseconds.
        kernel_us: u64,
        /// Length of a pause in microseconds.
        pause_us: u64,
        /// Pairs for each line.
        count: usize,
    },
}

impl Load {
    /// Reads `busy KERNEL_US` or `paced KERNEL_US PAUSE_US COUNT`; nothing when it is neither.
    #[must_use]
    pub fn parse(words: &[String]) -> Option<Self> {
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        match words.first()?.as_str() {
            "busy" => Some(Self::Busy { kernel_us: number(1)? }),
            "paced" => Some(Self::Paced {
                kernel_us: number(1)?,
                pause_us: number(2)?,
                count: usize::try_from(number(3)?).ok().filter(|count| *count > 0)?,
            }),
            _ => None,
        }
    }
}

/// The driver's calls, a stream and a kernel that fills the card.
struct Card {
    launch: LaunchKernel,
    synchronize: unsafe extern "C" fn(Handle) -> c_int,
    record: unsafe extern "C" fn(Handle, Handle) -> c_int,
    query: unsafe extern "C" fn(Handle) -> c_int,
    elapsed: unsafe extern "C" fn(*mut f32, Handle, Handle) -> c_int,
    function: Handle,
    stream: Handle,
    events: [Handle; 3],
}

type LaunchKernel = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut Handle,
    *mut Handle,
) -> c_int;

fn check(what: &str, code: c_int) -> Result<(), String> {
    if code == 0 {
        Ok(())
    } else {
        Err(format!("{what}: error {code}"))
    }
}

/// Calls an entry of the driver whose signature the caller vouches for.
macro_rules! call {
    ($library:ident, $name:literal, ($($type:ty),*), $($arg:expr),*) => {{
        type Entry = unsafe extern "C" fn($($type),*) -> c_int;
        // SAFETY: the signature is the one in cuda.h.
        let found = unsafe { $library.get::<Entry>(concat!($name, "\0").as_bytes()) };
        let entry: Symbol<'_, Entry> = found.map_err(|e| format!("{}: {e}", $name))?;
        // SAFETY: places for answers are live locals, handles come from the driver.
        let code = unsafe { entry($($arg),*) };
        check($name, code)?;
    }};
}

impl Card {
    fn open(library: &'static Library, kernel_us: u64) -> Result<Self, String> {
        let text = CString::new(format!("kernel k {kernel_us}\n")).map_err(|e| e.to_string())?;
        let (mut device, mut context, mut module, mut function, mut stream) =
            (0, ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let mut events = [ptr::null_mut(); 3];
        call!(library, "cuInit", (c_uint), 0);
        call!(library, "cuDeviceGet", (*mut c_int, c_int), &raw mut device, 0);
        call!(
            library,
            "cuDevicePrimaryCtxRetain",
            (*mut Handle, c_int),
            &raw mut context,
            device
        );
        call!(library, "cuCtxSetCurrent", (Handle), context);
        call!(
            library,
            "cuModuleLoadData",
            (*mut Handle, *const c_char),
            &raw mut module,
            text.as_ptr()
        );
        call!(
            library,
            "cuModuleGetFunction",
            (*mut Handle, Handle, *const c_char),
            &raw mut function,
            module,
            c"k".as_ptr()
        );
        // Not held up by the default stream.
        call!(library, "cuStreamCreate", (*mut Handle, c_uint), &raw mut stream, 1);
        for event in &mut events {
            call!(library, "cuEventCreate", (*mut Handle, c_uint), &raw mut *event, 0);
        }
        let missing = |e: libloading::Error| e.to_string();
        // SAFETY: signatures of cuda.h; the library stays loaded.
        unsafe {
            Ok(Self {
                launch: *library.get::<LaunchKernel>(b"cuLaunchKernel\0").map_err(missing)?,
                synchronize: *library.get(b"cuStreamSynchronize\0").map_err(missing)?,
                query: *library.get(b"cuStreamQuery\0").map_err(missing)?,
                record: *library.get(b"cuEventRecord\0").map_err(missing)?,
                elapsed: *library.get(b"cuEventElapsedTime\0").map_err(missing)?,
                function,
                stream,
                events,
            })
        }
    }

    fn launch(&self) -> Result<(), String> {
        let none = ptr::null_mut();
        // SAFETY: a function of this card without parameters, more blocks than the card holds at a time.
        let code = unsafe { (self.launch)(self.function, 65535, 1, 1, 32, 1, 1, 0, self.stream, none, none) };
        check("cuLaunchKernel", code)
    }

    fn record(&self, event: usize) -> Result<(), String> {
        // SAFETY: an event and the stream of this card.
        check("cuEventRecord", unsafe {
            (self.record)(self.events[event], self.stream)
        })
    }

    /// Microseconds between two events that are over.
    fn between(&self, from: usize, to: usize) -> Result<f32, String> {
        let mut ms = 0.0_f32;
        // SAFETY: events of this card, and a place for the answer.
        let code = unsafe { (self.elapsed)(&raw mut ms, self.events[from], self.events[to]) };
        check("cuEventElapsedTime", code)?;
        Ok(ms * 1000.0)
    }

    /// Two kernels: from the wish to launch the first to its end, and from there to the end of the second, in
    /// microseconds.
    fn pair(&self) -> Result<[f32; 2], String> {
        self.record(0)?;
        self.launch()?;
        self.record(1)?;
        for _ in 0..QUESTIONS {
            // SAFETY: the stream of this card. The answer is that it is not ready; what matters is that time passes.
            unsafe { (self.query)(self.stream) };
        }
        self.launch()?;
        self.record(2)?;
        // SAFETY: the stream of this card.
        let code = unsafe { (self.synchronize)(self.stream) };
        check("cuStreamSynchronize", code)?;
        Ok([self.between(0, 1)?, self.between(1, 2)?])
    }
}

/// Questions between two kernels: on a card with a virtual clock each takes as long as a launch.
const QUESTIONS: usize = 100;

/// What of times stands out, without what the kernel takes itself.
fn summary(times: &mut [f32], kernel_us: u64) -> serde_json::Value {
    times.sort_by(f32::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a short time, not negative"
    )]
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).clamp(1, times.len()) - 1;
        (times[place] - kernel_us as f32).max(0.0).round() as u64
    };
    json!({ "p50_us": at(50), "p90_us": at(90), "p99_us": at(99), "most_us": at(100) })
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// Works until it is ended.
///
/// # Errors
/// The driver's first refusal.
pub fn work(load: Load) -> Result<(), String> {
    // SAFETY: the library's initialisers are the driver's own.
    let library = unsafe { Library::new("libcuda.so.1") }.map_err(|e| format!("libcuda.so.1: {e}"))?;
    let library: &'static Library = Box::leak(Box::new(library));
    match load {
        Load::Busy { kernel_us } => {
            let card = Card::open(library, kernel_us)?;
            let (mut launched, mut told) = (0_u64, Instant::now());
            loop {
                card.launch()?;
                launched += 1;
                if told.elapsed() >= Duration::from_millis(100) {
                    told = Instant::now();
                    let work_ns = launched * kernel_us * 1000;
                    println!("{}", json!({ "at_ns": monotonic_ns(), "work_ns": work_ns }));
                }
            }
        }
        Load::Paced {
            kernel_us,
            pause_us,
            count,
        } => {
            let card = Card::open(library, kernel_us)?;
            loop {
                let (mut ahead, mut between) = (Vec::with_capacity(count), Vec::with_capacity(count));
                for _ in 0..count {
                    let [first, second] = card.pair()?;
                    ahead.push(first);
                    between.push(second);
                    std::thread::sleep(Duration::from_micros(pause_us));
                }
                let (ahead, between) = (summary(&mut ahead, kernel_us), summary(&mut between, kernel_us));
                println!("{}", json!({ "count": count, "ahead": ahead, "between": between }));
            }
        }
    }
}

/// What a line of a busy program says: monotonic clock and work, both in nanoseconds.
#[must_use]
pub fn count(line: &serde_json::Value) -> Option<(u64, u64)> {
    Some((line["at_ns"].as_u64()?, line["work_ns"].as_u64()?))
}

/// Work between two times in percent of the time, by counts in order of their time. Taken between the first counts at
/// or behind both times; nothing where there are none.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
pub fn part(counts: &[(u64, u64)], from_ns: u64, until_ns: u64) -> Option<f64> {
    let first = |at: u64| counts.iter().find(|(clock, _)| *clock >= at);
    let ((from, before), (until, after)) = (first(from_ns)?, first(until_ns)?);
    let time = until.checked_sub(*from).filter(|time| *time > 0)?;
    Some(after.saturating_sub(*before) as f64 / time as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_they_are_called() {
        let ahead = summary(&mut [130.0, 110.0, 100.0, 120.0], 100);
        assert_eq!(
            ahead,
            json!({ "p50_us": 10, "p90_us": 30, "p99_us": 30, "most_us": 30 })
        );
        let counts = [(100, 0), (200, 50), (300, 70), (400, 130)];
        assert_eq!(part(&counts, 150, 400), Some(40.0));
        assert_eq!(part(&counts, 150, 401), None);
        assert_eq!(part(&counts, 150, 160), None);
        assert_eq!(count(&json!({ "at_ns": 3, "work_ns": 4 })), Some((3, 4)));
    }

    fn parsed(text: &str) -> Option<Load> {
        Load::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_say_what_to_do() {
        assert_eq!(parsed("busy 100"), Some(Load::Busy { kernel_us: 100 }));
        let paced = Load::Paced {
            kernel_us: 5,
            pause_us: 6,
            count: 7,
        };
        assert_eq!(parsed("paced 5 6 7"), Some(paced));
        for wrong in ["", "busy", "busy x", "paced 1 2", "paced 1 2 0", "idle"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
