//! What is asked of the operating system: files, mappings, clock, processes. System calls, no allocation.

use core::{
    ffi::{CStr, c_int, c_void},
    mem::MaybeUninit,
    ptr,
};

use tessera_region::Owner;

/// A file descriptor that is closed when dropped.
struct Fd(c_int);

impl Fd {
    fn open(path: &CStr, flags: c_int) -> Option<Self> {
        // SAFETY: a C string and flags without O_CREAT.
        let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
        // Not `then_some`: it would make, and so close, one for a failed open, and `errno` would be lost.
        (fd >= 0).then(|| Self(fd))
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            // SAFETY: the rest of the buffer.
            let count = unsafe { libc::read(self.0, rest.as_mut_ptr().cast(), rest.len()) };
            match usize::try_from(count) {
                Ok(0) => break,
                Ok(count) => filled = filled.saturating_add(count),
                Err(_) if errno() == libc::EINTR => {}
                Err(_) => break,
            }
        }
        filled
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: opened here and closed once.
        unsafe { libc::close(self.0) };
    }
}

/// The error of the last system call of this thread.
pub(crate) fn errno() -> c_int {
    // SAFETY: always a valid place.
    unsafe { *libc::__errno_location() }
}

/// Keeps the caller's `errno` over our own system calls: a program may look at it after a call that succeeded.
pub(crate) struct KeepErrno(c_int);

impl KeepErrno {
    pub(crate) fn new() -> Self {
        Self(errno())
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: always a valid place.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

/// Reads a whole small file; the number of bytes read, or the error number.
pub(crate) fn read_file(path: &CStr, buffer: &mut [u8]) -> Result<usize, c_int> {
    let fd = Fd::open(path, libc::O_RDONLY).ok_or_else(errno)?;
    Ok(fd.read(buffer))
}

/// Inode and change time of a file, one figure that is different after a replacement. Nothing when it is not there.
pub(crate) fn file_mark(path: &CStr) -> Option<u64> {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a C string and a place for the answer.
    if unsafe { libc::stat(path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled by the successful call.
    let found = unsafe { found.assume_init() };
    Some(
        found.st_ino.rotate_left(32)
            ^ found.st_ctime_nsec.unsigned_abs()
            ^ found.st_ctime.unsigned_abs().rotate_left(20),
    )
}

/// Maps a file of at least `size` bytes, shared.
pub(crate) fn map_file(path: &CStr, size: usize, writable: bool) -> Result<*mut u8, c_int> {
    let fd = Fd::open(path, if writable { libc::O_RDWR } else { libc::O_RDONLY }).ok_or_else(errno)?;
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: an open file and a place for the answer.
    if unsafe { libc::fstat(fd.0, found.as_mut_ptr()) } != 0 {
        return Err(errno());
    }
    // SAFETY: filled by the successful call.
    let length = unsafe { found.assume_init() }.st_size;
    if usize::try_from(length).is_ok_and(|length| length >= size) {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping of an open file, at a place of the kernel's choice.
        let page = unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd.0, 0) };
        if page == libc::MAP_FAILED {
            Err(errno())
        } else {
            Ok(page.cast())
        }
    } else {
        Err(libc::EINVAL)
    }
}

/// Gives a mapping back.
///
/// # Safety
/// The bytes were mapped by this module and nothing refers to them any more.
pub(crate) unsafe fn unmap(page: *mut u8, size: usize) {
    // SAFETY: by the caller's promise.
    unsafe { libc::munmap(page.cast(), size) };
}

/// Zeroed private memory; null when there is none. With `wipe` a forked child finds it zeroed again, which needs
/// Linux 4.14; without that support the answer says `false`.
pub(crate) fn private_memory(size: usize, wipe: bool) -> (*mut c_void, bool) {
    // SAFETY: a new mapping at a place of the kernel's choice.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return (ptr::null_mut(), false);
    }
    // SAFETY: the mapping just made.
    let wiped = wipe && unsafe { libc::madvise(page, size, libc::MADV_WIPEONFORK) } == 0;
    (page, wiped)
}

/// Milliseconds of a monotonic clock, a few milliseconds coarse, without a system call.
pub(crate) fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    let part = |n: i64| u64::try_from(n).unwrap_or_default();
    part(now.tv_sec)
        .wrapping_mul(1000)
        .wrapping_add(part(now.tv_nsec).wrapping_div(1_000_000))
}

/// Waits.
pub(crate) fn sleep_ms(ms: i64) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: ms.saturating_mul(1_000_000).min(999_999_999),
    };
    // SAFETY: a valid time; no place for the rest.
    unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let part = |n: i64| u64::try_from(n).unwrap_or_default();
    part(now.tv_sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(part(now.tv_nsec))
}

/// Waits for less than a second.
pub(crate) fn sleep_us(us: i64) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: us.saturating_mul(1000).clamp(0, 999_999_999),
    };
    // SAFETY: a valid time; no place for the rest.
    unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
}

fn wait_on(word: &core::sync::atomic::AtomicU32, operation: c_int, value: u32, ms: u32) {
    let time = libc::timespec {
        tv_sec: i64::from(ms / 1000),
        tv_nsec: i64::from(ms % 1000).saturating_mul(1_000_000),
    };
    // SAFETY: a live word and a valid time.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, &raw const time) };
}

/// Sleeps while a word of this process has this value, for at most so many milliseconds.
pub(crate) fn futex_wait_for(word: &core::sync::atomic::AtomicU32, value: u32, ms: u32) {
    wait_on(word, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, value, ms);
}

/// The same for a word that another process changes.
pub(crate) fn shared_futex_wait_for(word: &core::sync::atomic::AtomicU32, value: u32, ms: u32) {
    wait_on(word, libc::FUTEX_WAIT, value, ms);
}

/// Wakes all that sleep on a word of this process.
pub(crate) fn futex_wake_all(word: &core::sync::atomic::AtomicU32) {
    // SAFETY: a private futex on a live word.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        )
    };
}

/// The same for a word that other processes sleep on.
pub(crate) fn shared_futex_wake_all(word: &core::sync::atomic::AtomicU32) {
    // SAFETY: a live word; waking has no other effect.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Whether a word that others change has a value, as the system sees it: unlike a load, that ends no process whose file
/// became shorter. What cannot be read counts as unchanged.
pub(crate) fn word_is(word: &core::sync::atomic::AtomicU32, value: u32) -> bool {
    // Compares the word, and then would move no waiter.
    let none = ptr::null_mut::<u32>();
    // SAFETY: an address; the system refuses one that is not mapped. Nobody is woken or moved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_CMP_REQUEUE,
            0,
            none,
            word.as_ptr(),
            value,
        )
    };
    result >= 0 || errno() != libc::EAGAIN
}

/// Adds one to a word that others look at, in the same way.
pub(crate) fn add_one(word: &core::sync::atomic::AtomicU32) {
    const ADD_ONE: u32 = 1 << 28 | 1 << 12;
    // SAFETY: as above; the system changes the word by an atomic operation.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE_OP,
            0,
            ptr::null_mut::<u32>(),
            word.as_ptr(),
            ADD_ONE,
        )
    };
}

/// Keeps all signals from this thread, and from threads that it starts meanwhile.
pub(crate) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        let (mut all, mut old) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: places for two sets, both filled before they are read.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::sigemptyset(old.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
            Self(old.assume_init())
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set that was in force before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Sleeps while the word has this value. May wake for no reason.
pub(crate) fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32) {
    // SAFETY: a private futex on a live word, without a timeout.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            ptr::null::<libc::timespec>(),
        )
    };
}

/// Wakes one that sleeps on the word.
pub(crate) fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    // SAFETY: a private futex on a live word.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        )
    };
}

/// The pid, by system call: no cache to go stale after a raw `clone`.
pub(crate) fn pid() -> u32 {
    // SAFETY: no conditions.
    u32::try_from(unsafe { libc::syscall(libc::SYS_getpid) }).unwrap_or_default()
}

/// Inode of this process's pid namespace; 0 where `/proc` does not show it.
pub(crate) fn pid_namespace() -> u64 {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a C string and a place for the answer.
    if unsafe { libc::stat(c"/proc/self/ns/pid".as_ptr(), found.as_mut_ptr()) } != 0 {
        return 0;
    }
    // SAFETY: filled by the successful call.
    unsafe { found.assume_init() }.st_ino
}

/// What `/proc/<pid>/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Ended, waiting to be collected by its parent, and no thread is left.
    pub(crate) dead: bool,
    /// Start in clock ticks since boot.
    pub(crate) start_ticks: u64,
}

/// Reads the state of a process; nothing when it cannot be read.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let mut path = [0_u8; 32];
    proc_path(pid, &mut path)?;
    let mut text = [0_u8; 1024];
    let length = read_file(CStr::from_bytes_until_nul(&path).ok()?, &mut text).ok()?;
    parse_stat(text.get(..length)?)
}

/// `/proc/<pid>/stat` and a zero byte.
fn proc_path(pid: u32, out: &mut [u8; 32]) -> Option<()> {
    let mut digits = [0_u8; 10];
    let mut first = digits.len();
    let mut rest = pid;
    loop {
        first = first.checked_sub(1)?;
        *digits.get_mut(first)? = b'0'.wrapping_add(u8::try_from(rest.wrapping_rem(10)).ok()?);
        rest = rest.wrapping_div(10);
        if rest == 0 {
            break;
        }
    }
    let parts = [b"/proc/", digits.get(first..)?, b"/stat"];
    let bytes = parts.into_iter().flatten();
    out.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    Some(())
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The name, in brackets, may hold anything, brackets and blanks too; the last bracket ends it.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = text.get(end.checked_add(2)?..)?.split(|&byte| byte == b' ');
    // Fields are counted from 1: state is 3, the number of threads 20, the start 22.
    let state = *fields.next()?.first()?;
    let threads = number(fields.nth(16)?)?;
    let start_ticks = number(fields.nth(1)?)?;
    // A main thread that ended while others run shows as a zombie too.
    let dead = matches!(state, b'Z' | b'X' | b'x') && threads <= 1;
    Some(Stat { dead, start_ticks })
}

fn number(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether a process may be alive. In doubt it is.
pub(crate) fn alive(owner: Owner, own_namespace: u64) -> bool {
    // A pid of another namespace means nothing here; the node agent sees those.
    if !owner.in_namespace(own_namespace) {
        return true;
    }
    let Ok(pid) = libc::pid_t::try_from(owner.pid()) else {
        return true;
    };
    // SAFETY: signal 0 only asks.
    if unsafe { libc::kill(pid, 0) } != 0 && errno() == libc::ESRCH {
        return false;
    }
    // Without a readable /proc the pid has to do.
    stat(owner.pid()).is_none_or(|found| !found.dead && (owner.started_at(found.start_ticks) || owner.started_at(0)))
}

/// Who this process is.
pub(crate) fn myself(namespace: u64) -> Option<Owner> {
    let pid = pid();
    let start = stat(pid).map_or(0, |found| found.start_ticks);
    Owner::new(pid, start, namespace)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = |text: &str| parse_stat(text.as_bytes());
        let rest = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let rest = rest.get(..rest.len()).unwrap();
        // 3 state, 4..19 are the sixteen zeros, 20 threads, 21 zero, 22 start.
        assert_eq!(
            stat(&format!("7 (a) R (b c) S {rest} 4 0 12345 0")),
            Some(Stat {
                dead: false,
                start_ticks: 12345
            })
        );
        assert_eq!(
            stat(&format!("7 (x) Z {rest} 1 0 9 0")),
            Some(Stat {
                dead: true,
                start_ticks: 9
            })
        );
        assert_eq!(
            stat(&format!("7 (x) Z {rest} 3 0 9 0")),
            Some(Stat {
                dead: false,
                start_ticks: 9
            })
        );
        assert_eq!(stat("7 (x"), None);
        assert_eq!(stat(""), None);
    }

    #[test]
    fn this_process_is_alive_and_its_pid_at_another_time_is_not() {
        let namespace = pid_namespace();
        let me = myself(namespace).unwrap();
        assert!(alive(me, namespace));
        let start = stat(pid()).unwrap().start_ticks;
        assert!(!alive(Owner::new(pid(), start ^ 1, namespace).unwrap(), namespace));
        assert!(alive(Owner::new(pid(), start ^ 1, namespace ^ 1).unwrap(), namespace));
        assert!(!alive(Owner::new(4_194_304, 1, namespace).unwrap(), namespace));
    }
}
