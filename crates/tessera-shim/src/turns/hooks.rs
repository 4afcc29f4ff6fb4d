//! Entries that queue work on a card, and those that say when it is done.

use core::{
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{MOVES, ON, UNUSUAL, context, count, is_capturing, is_off, key, launch, launch_whole, turns};
use crate::{
    argument::given_again,
    codes::{INVALID_VALUE, SUCCESS},
    memory::{Form, graph, plain},
    swap,
};

const LEGACY: u64 = 1;

#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a launch has eleven arguments; each further call moves them all"
)]
fn gated(function: u64, stream: u64, form: Form, real: impl FnOnce() -> i32) -> i32 {
    launch(function, stream, form, || {
        let _pass = swap::pass();
        real()
    })
}

/// [`gated`] for entries that have counted the usual launches before.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a launch has eleven arguments; each further call moves them all"
)]
fn first(function: u64, stream: u64, form: Form, real: impl FnOnce() -> i32) -> i32 {
    let real = || {
        let _pass = swap::pass();
        real()
    };
    if cfg!(target_arch = "x86_64") {
        launch_whole(function, stream, form, real)
    } else {
        launch(function, stream, form, real)
    }
}

/// `cuLaunch(function)`.
pub(crate) fn plain_launch(function: u64, real: impl FnOnce() -> i32) -> i32 {
    gated(function, LEGACY, Form::Legacy, real)
}

/// `cuLaunchGrid(function, width, height)`.
pub(crate) fn grid(function: u64, _width: u64, _height: u64, real: impl FnOnce() -> i32) -> i32 {
    gated(function, LEGACY, Form::Legacy, real)
}

/// `cuLaunchGridAsync(function, width, height, stream)`.
pub(crate) fn grid_async(function: u64, _width: u64, _height: u64, stream: u64, real: impl FnOnce() -> i32) -> i32 {
    gated(function, stream, Form::Legacy, real)
}

macro_rules! kernels {
    ($($name:ident($($more:ident),*) $form:ident $gated:ident;)*) => {$(
        /// A kernel with its grid, block and shared memory, then the stream.
        #[expect(clippy::too_many_arguments, reason = "the vendor's signature")]
        #[inline(always)]
        pub(crate) fn $name(
            function: u64,
            _gx: u64,
            _gy: u64,
            _gz: u64,
            _bx: u64,
            _by: u64,
            _bz: u64,
            _shared: u64,
            stream: u64,
            $($more: u64,)*
            real: impl FnOnce() -> i32,
        ) -> i32 {
            $gated(function, stream, Form::$form, real)
        }
    )*};
}

kernels! {
    kernel(_parameters, _extra) Legacy first;
    kernel_per_thread(_parameters, _extra) PerThread first;
    cooperative(_parameters) Legacy gated;
    cooperative_per_thread(_parameters) PerThread gated;
}

/// Offset of the stream in the vendor's structure of a launch.
const STREAM_AT: usize = 32;

/// The stream of a launch that is described by a structure; nothing when nobody can read that.
fn stream_of(configuration: u64) -> Option<u64> {
    read_at(configuration, STREAM_AT)
}

/// Eight bytes of a structure of the caller.
fn read_at(address: u64, at: usize) -> Option<u64> {
    let place = usize::try_from(address).ok()?.checked_add(at)?;
    // SAFETY: an integer.
    unsafe { given_again(ptr::with_exposed_provenance(place)) }
}

/// `cuLaunchKernelEx(configuration, function, parameters, extra)`.
pub(crate) fn extended(
    configuration: u64,
    function: u64,
    _parameters: u64,
    _extra: u64,
    real: impl FnOnce() -> i32,
) -> i32 {
    if ON.load(Ordering::Relaxed) == 0 {
        let _pass = swap::pass();
        return real();
    }
    match stream_of(configuration) {
        Some(stream) => gated(function, stream, Form::Legacy, real),
        None => INVALID_VALUE,
    }
}

/// The same with the thread's own default stream.
pub(crate) fn extended_per_thread(
    configuration: u64,
    function: u64,
    _parameters: u64,
    _extra: u64,
    real: impl FnOnce() -> i32,
) -> i32 {
    if ON.load(Ordering::Relaxed) == 0 {
        let _pass = swap::pass();
        return real();
    }
    match stream_of(configuration) {
        Some(stream) => gated(function, stream, Form::PerThread, real),
        None => INVALID_VALUE,
    }
}

/// `cuLaunchCooperativeKernelMultiDevice(list, count, flags)`: one launch on each of several streams. They pass the gate
/// of the first; entries are 56 bytes with the function in front and the stream at 40.
pub(crate) fn multi(list: u64, count: u64, _flags: u64, real: impl FnOnce() -> i32) -> i32 {
    if ON.load(Ordering::Relaxed) == 0 || count & 0xffff_ffff == 0 {
        let _pass = swap::pass();
        return real();
    }
    match (read_at(list, 0), read_at(list, 40)) {
        (Some(function), Some(stream)) => gated(function, stream, Form::Legacy, real),
        _ => INVALID_VALUE,
    }
}

/// `cuGraphLaunch`: the whole graph is one piece of work.
#[inline]
pub(crate) unsafe fn graph_launch(
    real: unsafe extern "C" fn(u64, u64) -> i32,
    executable: u64,
    stream: u64,
    form: Form,
) -> i32 {
    if graph::are_without_memory() && ((is_off() && swap::is_off()) || count(executable, stream, form)) {
        // SAFETY: the caller's arguments.
        return unsafe { real(executable, stream) };
    }
    // SAFETY: the caller's arguments.
    unsafe { unusual_graph_launch(real, executable, stream, form) }
}

#[inline(never)]
unsafe fn unusual_graph_launch(
    real: unsafe extern "C" fn(u64, u64) -> i32,
    executable: u64,
    stream: u64,
    form: Form,
) -> i32 {
    // SAFETY: the caller's arguments.
    launch(executable, stream, form, || unsafe {
        graph::launch(real, executable, stream)
    })
}

fn began(code: i32) -> i32 {
    if code == SUCCESS {
        UNUSUAL.fetch_add(1, Ordering::AcqRel);
    }
    code
}

/// `cuStreamBeginCapture(stream)`, the first form.
pub(crate) fn capture1(_stream: u64, real: impl FnOnce() -> i32) -> i32 {
    began(real())
}

/// `cuStreamBeginCapture(stream, mode)`.
pub(crate) fn capture2(_stream: u64, _mode: u64, real: impl FnOnce() -> i32) -> i32 {
    began(real())
}

/// `cuStreamBeginCaptureToGraph(stream, graph, dependencies, edges, count, mode)`.
pub(crate) fn capture6(
    _stream: u64,
    _graph: u64,
    _dependencies: u64,
    _edges: u64,
    _count: u64,
    _mode: u64,
    real: impl FnOnce() -> i32,
) -> i32 {
    began(real())
}

fn less(count: &AtomicU32) {
    // The closure declines at 0: a capture that was begun by a call that nobody saw.
    let (Ok(_) | Err(_)) = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
        (n & !MOVES != 0).then(|| n.wrapping_sub(1))
    });
}

/// `cuStreamEndCapture`.
pub(crate) unsafe fn end_capture(real: unsafe extern "C" fn(u64, *mut u64) -> i32, stream: u64, out: *mut u64) -> i32 {
    // SAFETY: the caller's arguments.
    let code = unsafe { graph::end_capture(real, stream, out) };
    if is_capturing() {
        less(&UNUSUAL);
    }
    code
}

/// `cuStreamDestroy`: its work goes on, its handle may come again for another stream.
pub(crate) fn destroy_stream(stream: u64, real: impl FnOnce() -> i32) -> i32 {
    if ON.load(Ordering::Relaxed) == 0 {
        return real();
    }
    let name = key(stream, Form::Legacy, context);
    if let Some(turns) = turns()
        && let Some(place) = turns.streams.find(name)
        && let Some(lane) = place.lane()
        && place.unmarked_ns.load(Ordering::Relaxed) > 0
        && !is_capturing()
    {
        turns.mark(place, lane, place.publish(lane), stream, Form::Legacy);
    }
    let code = real();
    if code == SUCCESS
        && let Some(turns) = turns()
    {
        turns.streams.forget(name);
    }
    code
}

/// `cuStreamSynchronize`: all of the stream's work is done.
pub(crate) unsafe fn synchronize(real: unsafe extern "C" fn(u64) -> i32, stream: u64, form: Form) -> i32 {
    let before = (ON.load(Ordering::Relaxed) != 0).then(|| {
        let turns = turns()?;
        let place = turns.streams.find(key(stream, form, context))?;
        Some((place, place.publish(place.lane()?)))
    });
    // SAFETY: the caller's argument.
    let code = unsafe { plain::synchronize(real, stream) };
    if code == SUCCESS
        && let Some(Some((place, launched))) = before
    {
        place.done(launched);
    }
    code
}

/// `cuCtxSynchronize`: all work of the context is done. With several contexts nothing is known of a single stream.
pub(crate) unsafe fn synchronize_context(real: unsafe extern "C" fn() -> i32) -> i32 {
    if ON.load(Ordering::Relaxed) == 0 || context() != 0 {
        // SAFETY: no arguments.
        return unsafe { plain::synchronize_context(real) };
    }
    let mut before = [0_u64; tessera_region::LANES];
    let turns = turns();
    if let Some(turns) = turns {
        turns.streams.each(|stream| {
            if let Some(lane) = stream.lane().filter(|_| stream.is_behind()) {
                stream.publish(lane);
            }
        });
        for (place, lane) in before.iter_mut().zip(turns.row().lanes()) {
            *place = lane.launched_ns.load(Ordering::Acquire);
        }
    }
    // SAFETY: no arguments.
    let code = unsafe { plain::synchronize_context(real) };
    if code == SUCCESS
        && let Some(turns) = turns
    {
        for (launched, lane) in before.iter().zip(turns.row().lanes()) {
            if lane.done_ns.load(Ordering::Acquire) < *launched {
                lane.done_ns.fetch_max(*launched, Ordering::AcqRel);
            }
        }
        turns.streams.each(|stream| {
            if !stream.is_behind() && stream.lane().is_some_and(|lane| lane.read().1 == 0) {
                stream.unmarked_ns.store(0, Ordering::Relaxed);
            }
        });
    }
    code
}
