//! The thread that carries out orders to leave the card and to return to it.
//!
//! It exists only in processes with movable memory, sleeps on the bell of the order page, and takes no signal. Orders
//! of several cards are carried out one after the other.

use core::sync::atomic::Ordering;

use tessera_region::{MAX_CARDS, Order};

use super::store::{Chunks, Space, State, bring, take_off};
use crate::{
    codes::SUCCESS,
    os,
    process::{Card, Process},
    symbol::{
        cuCtxSetCurrent, cuCtxSynchronize, cuMemFreeHost, cuMemHostAlloc, cuMemcpyDtoHAsync_v2, cuMemcpyHtoDAsync_v2,
        cuStreamCreate, cuStreamDestroy_v2, cuStreamSynchronize,
    },
};

/// How long it sleeps at most: a bell could be rung between a look and the sleep, and an agent may be gone.
const NAP_MS: u32 = 20;
/// An agent that was not heard for so long is taken for dead.
const SILENCE_NS: u64 = 1_000_000_000;
/// The stream does not wait for the default stream.
const NON_BLOCKING: u32 = 1;
/// Host memory that every context can use.
const PORTABLE: u32 = 1;

/// Starts the thread.
pub(super) fn spawn(space: &'static Space, process: &'static Process) -> bool {
    // The program's handlers are for the program's threads; a new thread inherits the mask.
    let _mask = os::SignalsBlocked::new();
    std::thread::Builder::new()
        .name("vgpu-swap".into())
        .stack_size(256 << 10)
        .spawn(move || run(space, process))
        .is_ok()
}

fn run(space: &'static Space, process: &'static Process) {
    loop {
        let Some(orders) = space.orders() else {
            os::sleep_ms(i64::from(NAP_MS));
            continue;
        };
        let bell = orders.bell().load(Ordering::SeqCst);
        for card in 0..process.card_count().min(MAX_CARDS) {
            if !process.swaps(Card(card)) {
                continue;
            }
            space.beat(process, card, false);
            if let Some((number, order)) = orders.order(card) {
                follow(space, process, card, number, order, orders.heartbeat_ns());
            }
        }
        os::shared_futex_wait_for(orders.bell(), bell, NAP_MS);
    }
}

fn follow(space: &Space, process: &Process, card: usize, number: u32, order: Order, heard_ns: u64) {
    let Some(answered) = space.answered.get(card) else {
        return;
    };
    let fresh = answered.load(Ordering::Relaxed) != number;
    let unheard = os::now_ns().saturating_sub(heard_ns) > SILENCE_NS;
    match order {
        Order::Leave { keep_bytes } if fresh => go(space, process, card, keep_bytes, number),
        Order::Return if fresh => come(space, process, card, Some(number)),
        // Nobody decides, and a call waits: room may be there without anybody's help.
        _ if unheard && space.wanted.load(Ordering::SeqCst) != 0 => come(space, process, card, None),
        _ if fresh => {
            answered.store(number, Ordering::Relaxed);
            space.with(|chunks| space.publish(process, card, chunks));
        }
        _ => {}
    }
}

/// A stream of a context; work on it is waited for at the end.
struct Copies {
    context: u64,
    stream: u64,
}

impl Copies {
    fn begin(context: u64) -> Option<Self> {
        let mut stream = 0;
        // SAFETY: a context that the chunk was made in, and a place for the answer.
        let made =
            unsafe { cuCtxSetCurrent(context) == SUCCESS && cuStreamCreate(&raw mut stream, NON_BLOCKING) == SUCCESS };
        made.then_some(Self { context, stream })
    }

    fn finish(&self) -> bool {
        // SAFETY: made by `begin`.
        unsafe { cuCtxSetCurrent(self.context) == SUCCESS && cuStreamSynchronize(self.stream) == SUCCESS }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // SAFETY: made by `begin` and destroyed once.
        unsafe { cuStreamDestroy_v2(self.stream) };
    }
}

/// Contexts that have movable memory on a card.
fn contexts(chunks: &mut Chunks, card: usize, wanted: fn(State) -> bool) -> [u64; 16] {
    let mut found = [0; 16];
    for chunk in chunks.all() {
        if usize::try_from(chunk.card) == Ok(card)
            && wanted(chunk.state)
            && !found.contains(&chunk.context)
            && let Some(place) = found.iter_mut().find(|place| **place == 0)
        {
            *place = chunk.context;
        }
    }
    found
}

/// Leaves the card down to `keep` bytes.
fn go(space: &Space, process: &Process, card: usize, keep: u64, number: u32) {
    let begun = os::now_ns();
    space.beat(process, card, true);
    let closed = space.close();
    space.with(|chunks| {
        if closed {
            let mut resident = 0_u64;
            for chunk in chunks.all() {
                if usize::try_from(chunk.card) == Ok(card) && chunk.state == State::Resident && !chunk.pinned {
                    resident = resident.saturating_add(chunk.size);
                }
            }
            // What was not used in the newest turn goes first.
            let newest = chunks.turn;
            for context in contexts(chunks, card, |state| state == State::Resident) {
                if context == 0 || resident <= keep {
                    continue;
                }
                for old in [true, false] {
                    resident = copy_out(space, chunks, card, context, resident, keep, |turn| {
                        (turn < newest) == old
                    });
                }
            }
        }
        finish(space, process, card, chunks, begun, Some(number));
    });
}

fn copy_out(
    space: &Space,
    chunks: &mut Chunks,
    card: usize,
    context: u64,
    mut resident: u64,
    keep: u64,
    turn: impl Fn(u64) -> bool,
) -> u64 {
    let Some(copies) = Copies::begin(context) else {
        return resident;
    };
    // SAFETY: no arguments; the context is current.
    if unsafe { cuCtxSynchronize() } != SUCCESS {
        return resident;
    }
    // Two passes over the chunks: all copies are queued before the first is waited for.
    let chosen = |chunk: &super::store::Chunk| {
        usize::try_from(chunk.card) == Ok(card)
            && chunk.context == context
            && chunk.state == State::Resident
            && !chunk.pinned
            && turn(chunk.turn)
    };
    let mut queued = 0_u64;
    let mut last = 0;
    for (index, chunk) in chunks.all().iter_mut().enumerate() {
        if !chosen(chunk) || resident.saturating_sub(queued) <= keep {
            continue;
        }
        let Ok(size) = usize::try_from(chunk.size) else {
            continue;
        };
        // SAFETY: places for answers; host memory of the chunk's size, and the chunk is mapped.
        let code = unsafe {
            if chunk.host == 0 && cuMemHostAlloc(&raw mut chunk.host, size, PORTABLE) != SUCCESS {
                chunk.host = 0;
                continue;
            }
            cuMemcpyDtoHAsync_v2(chunk.host, chunk.address, size, copies.stream)
        };
        if code != SUCCESS {
            break;
        }
        queued = queued.saturating_add(chunk.size);
        last = index.saturating_add(1);
        // Marked for the second pass; a chunk is never away with a handle otherwise.
        chunk.state = State::Away;
    }
    let copied = copies.finish();
    for chunk in chunks.all().iter_mut().take(last) {
        if usize::try_from(chunk.card) != Ok(card)
            || chunk.context != context
            || chunk.state != State::Away
            || chunk.handle == 0
        {
            continue;
        }
        if copied {
            take_off(chunk);
            resident = resident.saturating_sub(chunk.size);
            space.moved_bytes.fetch_add(chunk.size, Ordering::Relaxed);
        } else {
            chunk.state = State::Resident;
        }
    }
    resident
}

/// Returns to the card as far as there is room.
fn come(space: &Space, process: &Process, card: usize, number: Option<u32>) {
    let begun = os::now_ns();
    space.beat(process, card, true);
    space.with(|chunks| {
        chunks.turn = chunks.turn.saturating_add(1);
        let turn = chunks.turn;
        for context in contexts(chunks, card, |state| matches!(state, State::Away | State::Empty)) {
            if context == 0 {
                continue;
            }
            let Some(copies) = Copies::begin(context) else { continue };
            let mut last = 0;
            for (index, chunk) in chunks.all().iter_mut().enumerate() {
                let mine = usize::try_from(chunk.card) == Ok(card)
                    && chunk.context == context
                    && matches!(chunk.state, State::Away | State::Empty);
                if !mine {
                    continue;
                }
                if bring(chunk) != SUCCESS {
                    break;
                }
                let Ok(size) = usize::try_from(chunk.size) else {
                    continue;
                };
                let code = if chunk.state == State::Away {
                    // SAFETY: the chunk is mapped and the host memory has its size.
                    unsafe { cuMemcpyHtoDAsync_v2(chunk.address, chunk.host, size, copies.stream) }
                } else {
                    SUCCESS
                };
                if code != SUCCESS {
                    take_off(chunk);
                    break;
                }
                last = index.saturating_add(1);
            }
            let copied = copies.finish();
            for chunk in chunks.all().iter_mut().take(last) {
                let fresh = usize::try_from(chunk.card) == Ok(card)
                    && chunk.context == context
                    && chunk.handle != 0
                    && matches!(chunk.state, State::Away | State::Empty);
                if !fresh {
                    continue;
                }
                if !copied && chunk.state == State::Away {
                    take_off(chunk);
                    continue;
                }
                if chunk.state == State::Away {
                    space.moved_bytes.fetch_add(chunk.size, Ordering::Relaxed);
                }
                chunk.state = State::Resident;
                chunk.turn = turn;
                if chunk.pinned && chunk.host != 0 {
                    // SAFETY: given by the driver and freed once.
                    unsafe { cuMemFreeHost(chunk.host) };
                    chunk.host = 0;
                }
            }
        }
        finish(space, process, card, chunks, begun, number);
    });
}

fn finish(space: &Space, process: &Process, card: usize, chunks: &mut Chunks, begun: u64, number: Option<u32>) {
    space
        .moved_ns
        .fetch_add(os::now_ns().saturating_sub(begun), Ordering::Relaxed);
    if let (Some(number), Some(answered)) = (number, space.answered.get(card)) {
        answered.store(number, Ordering::Relaxed);
    }
    // The figures first: whoever passes the gate finds them true.
    if space.is_whole(chunks) {
        space.wanted.store(0, Ordering::SeqCst);
    }
    space.publish(process, card, chunks);
    space.open_if_whole(chunks);
}
