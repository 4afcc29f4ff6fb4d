//! Work on a card whose time is shared: launches pass a gate, and what is under way is told to the agent.
//!
//! Only for cards whose grant limits the time or takes part in priorities
//! ([`CardGrant::is_gated`](tessera_region::CardGrant::is_gated)); a program in any other container gets the driver's own
//! launches from its lookups. The agent says in the verdict whose turn it is; this side never decides that, but
//!
//! - waits at a closed gate, and says that it waits;
//! - keeps the predicted work on the card small, so that a turn ends soon after its gate closes;
//! - lets the card itself write how far it has come, so that the agent needs no call of the driver;
//! - paces by the share alone when no agent is heard, so that nobody waits for ever and no limit is lost.
//!
//! Work on a stream that is being captured is no launch. Copies pass freely.

pub(crate) mod hooks;

mod cost;
mod pace;
mod ring;
mod streams;

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use tessera_region::{
    GATE_BRIEF, GATE_CLOSED, GATE_RING, Lane, MARK_NS, MOST_NS, TURNS_SIZE, TurnReports, TurnRow, VerdictCard,
};

use crate::{
    address::Lock,
    codes::SUCCESS,
    memory::{Form, pool::capturing},
    os::{self, KeepErrno},
    place::{self, Place, current_context},
    process::{self, Card, Process, process},
    symbol::{
        cuMemHostGetDevicePointer_v2, cuMemHostRegister_v2, cuStreamSynchronize, cuStreamSynchronize_ptsz,
        cuStreamWriteValue64, cuStreamWriteValue64_ptsz, cuStreamWriteValue64_v2, cuStreamWriteValue64_v2_ptsz,
    },
};
use cost::{Costs, UNKNOWN_NS};
use pace::Pace;
use ring::Bell;
use streams::{Counted, Stream, Streams, key};

const TURNS_PATH: &core::ffi::CStr = c"/run/tessera/account/turns";
/// A closed gate is looked at again after this time at the latest.
const GATE_NAP_MS: u32 = 20;
/// Shortest and longest single wait for room on the card, in microseconds.
const ROOM_LEAST_US: u64 = 20;
const ROOM_NAP_US: u64 = 500;
/// Work of this length is followed by one more launch, so that the card has no gap between the two.
const PAIR_NS: u64 = 8_000_000;
/// A card that says nothing new for so long is not waited for any further, in nanoseconds.
const ROOM_PATIENCE_NS: u64 = 200_000_000;

/// 1 once a card of this process has a gate: only then is anything looked at.
static ON: AtomicU32 = AtomicU32::new(0);
/// Streams of this process that are being captured, and [`MOVES`]. One word, so that the usual launch looks at one.
static UNUSUAL: AtomicU32 = AtomicU32::new(0);
/// Bit of [`UNUSUAL`]: memory of this process can move.
const MOVES: u32 = 1 << 31;
static STATE: AtomicPtr<Turns> = AtomicPtr::new(core::ptr::null_mut());

/// What this process knows of its work. One mapping that a forked child finds empty. Valid when zero.
#[repr(C)]
struct Turns {
    row: AtomicPtr<TurnRow>,
    reports: AtomicPtr<u8>,
    /// Device address of the row, for the card to write to; 0 until it is known.
    pinned: AtomicU64,
    /// How often the driver did not take a write to the row.
    refused: AtomicU32,
    lock: Lock,
    streams: Streams,
    costs: Costs,
    pace: [Pace; tessera_region::MAX_CARDS],
    bells: [Bell; tessera_region::MAX_CARDS],
}

/// A row of its own for a process without the page that the agent reads; it paces itself by it.
const OWN_ROW: usize = size_of::<TurnRow>();

/// Called when a grant comes into force.
pub(crate) fn switch_on() {
    ON.store(1, Ordering::Release);
}

/// Called when memory of this process can move: then every launch passes the gate of [`crate::swap`].
pub(crate) fn memory_moves() {
    UNUSUAL.fetch_or(MOVES, Ordering::AcqRel);
}

fn is_capturing() -> bool {
    UNUSUAL.load(Ordering::Relaxed) & !MOVES != 0
}

/// The state of this process, once it has a row.
#[inline]
fn turns() -> Option<&'static Turns> {
    let found = STATE.load(Ordering::Acquire);
    // SAFETY: null, or a mapping that is never given back.
    let turns = unsafe { found.cast_const().as_ref() };
    match turns {
        Some(turns) if !turns.row.load(Ordering::Acquire).is_null() => Some(turns),
        _ => start(),
    }
}

#[cold]
fn start() -> Option<&'static Turns> {
    let _errno = KeepErrno::new();
    let process = process().ok()?;
    let mut known = STATE.load(Ordering::Acquire);
    if known.is_null() {
        let (page, _) = os::private_memory(size_of::<Turns>(), true);
        if page.is_null() {
            return None;
        }
        let page = page.cast::<Turns>();
        known = match STATE.compare_exchange(core::ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => page,
            Err(other) => {
                // SAFETY: mapped above, and nobody else has seen it.
                unsafe { os::unmap(page.cast(), size_of::<Turns>()) };
                other
            }
        };
    }
    // SAFETY: zeroed, aligned to a page, valid when zero, never given back.
    let turns = unsafe { &*known };
    let _guard = turns.lock.hold();
    if turns.row.load(Ordering::Acquire).is_null() {
        turns.row.store(row_of(turns, process)?, Ordering::Release);
    }
    Some(turns)
}

/// The row of this process in the shared page, or one of its own.
fn row_of(turns: &Turns, process: &Process) -> Option<*mut TurnRow> {
    if let (Ok(page), Some((_, slot))) = (os::map_file(TURNS_PATH, TURNS_SIZE, true), process.account()) {
        // SAFETY: a fresh mapping of the full size, given back only where nothing refers to it.
        let reports = unsafe { TurnReports::from_ptr(page) };
        if let Some(row) = reports.and_then(|reports| reports.use_row(usize::from(slot.number()))) {
            turns.reports.store(page, Ordering::Release);
            return Some(core::ptr::from_ref(row).cast_mut());
        }
        // SAFETY: mapped above; the reference has ended.
        unsafe { os::unmap(page, TURNS_SIZE) };
    }
    let (page, _) = os::private_memory(OWN_ROW, false);
    (!page.is_null()).then(|| page.cast())
}

/// Launches: waits for the turn of this container if it has to, and tells what was launched.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a launch has eleven arguments; each further call moves them all"
)]
pub(crate) fn launch(function: u64, stream: u64, form: Form, real: impl FnOnce() -> i32) -> i32 {
    if ON.load(Ordering::Relaxed) == 0 || count_apart(function, stream, form) {
        return real();
    }
    launch_whole(function, stream, form, real)
}

/// [`launch`] of what [`count`] did not count.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a launch has eleven arguments; each further call moves them all"
)]
pub(crate) fn launch_whole(function: u64, stream: u64, form: Form, real: impl FnOnce() -> i32) -> i32 {
    if ON.load(Ordering::Relaxed) == 0 {
        return real();
    }
    let then = begin(function, stream, form);
    let code = real();
    if code != SUCCESS || then.mark {
        then.finish(code == SUCCESS, stream, form);
    }
    code
}

/// What is to be done behind a launch.
#[derive(Clone, Copy)]
struct Then {
    /// Nothing for work that passes freely.
    stream: Option<&'static Stream>,
    /// The stream is to be marked.
    mark: bool,
    /// A measurement was begun.
    measured: bool,
    /// What was counted, so that it can be taken back.
    counted: Counted,
    /// Time that was booked for pacing, in nanoseconds.
    paced_ns: u64,
}

impl Then {
    const NOTHING: Self = Self {
        stream: None,
        mark: false,
        measured: false,
        counted: Counted {
            cost_ns: 0,
            launched_ns: 0,
            before_ns: 0,
        },
        paced_ns: 0,
    };

    #[cold]
    fn finish(self, launched: bool, stream: u64, form: Form) {
        let _errno = KeepErrno::new();
        let (Some(place), Some(turns)) = (self.stream, turns()) else {
            return;
        };
        if self.measured {
            turns.costs.end(launched, stream, form);
        }
        let Some(lane) = place.lane() else { return };
        if launched {
            turns.mark(place, lane, place.publish(lane), stream, form);
            return;
        }
        // Nothing came on the card. A mark would be wrong here: the driver may not know the stream either, and nobody
        // would ever say that the mark was reached.
        place.take_back(lane, self.counted);
        if let Some(pace) = turns.pace.get(place.card()) {
            pace.give_back(self.paced_ns);
        }
    }
}

/// Whether no launch of this process is looked at.
#[inline]
pub(crate) fn is_off() -> bool {
    ON.load(Ordering::Relaxed) == 0
}

/// The usual launch: of a known function, in a known stream, through an open gate, with no mark due. Counts it and says
/// so; anything else is left to [`begin`], and nothing has changed.
#[inline]
pub(crate) fn count(function: u64, stream: u64, form: Form) -> bool {
    // SAFETY: null, or a mapping that is never given back. A forked child finds it empty, without a stream.
    let Some(turns) = (unsafe { STATE.load(Ordering::Acquire).cast_const().as_ref() }) else {
        return false;
    };
    if UNUSUAL.load(Ordering::Relaxed) != 0 {
        return false;
    }
    let name = match (stream, form) {
        (3.., _) => key(stream, form, || 0),
        (0 | 1, Form::Legacy) if process::has_one_context() => key(stream, form, || 0),
        _ => return false,
    };
    let Some(place) = turns.streams.find_quick(name) else {
        return false;
    };
    match turns.costs.of(function) {
        0 => false,
        cost => place.count(cost),
    }
}

/// [`count`] for callers that keep many arguments.
#[inline(never)]
fn count_apart(function: u64, stream: u64, form: Form) -> bool {
    count(function, stream, form)
}

#[inline(never)]
fn begin(function: u64, stream: u64, form: Form) -> Then {
    let Some(turns) = turns() else { return Then::NOTHING };
    if is_capturing() && capturing(stream, form) {
        return Then::NOTHING;
    }
    let name = key(stream, form, context);
    let Some(place) = turns.streams.find(name).or_else(|| turns.take_up(name)) else {
        return Then::NOTHING;
    };
    let Some(lane) = place.lane() else { return Then::NOTHING };
    let words = place.words();
    let mut rung = false;
    if words.is_some_and(|words| words.gate.load(Ordering::Acquire) & !GATE_BRIEF != 0) {
        rung = turns.wait_for_gate(place, words, stream, form);
    }
    let known = turns.costs.of(function);
    let cost = if known == 0 { UNKNOWN_NS } else { known };
    let unmarked = place.unmarked_ns.fetch_add(cost, Ordering::Relaxed).wrapping_add(cost);
    // What is not known yet may be long: no more of it than of what has to give way at once.
    let brief = known == 0 || words.is_some_and(|words| words.gate.load(Ordering::Relaxed) & GATE_BRIEF != 0);
    let mark = brief || unmarked >= MARK_NS;
    let room = if mark {
        turns.make_room(place, function, unmarked, brief, stream, form)
    } else {
        Room::default()
    };
    let counted = place.count_now(lane, cost);
    if rung {
        turns.row().ask(place.card(), 0);
    }
    Then {
        stream: Some(place),
        mark,
        measured: room.measured,
        counted,
        paced_ns: room.paced_ns,
    }
}

/// What [`Turns::make_room`] did for a launch.
#[derive(Clone, Copy, Default)]
struct Room {
    measured: bool,
    /// Booked for pacing, in nanoseconds.
    paced_ns: u64,
}

/// The current context where it makes a difference: 0 in a process that has only one.
fn context() -> u64 {
    match process() {
        Ok(process) if process.has_one_context() => 0,
        _ => current_context(),
    }
}

impl Turns {
    #[inline]
    fn row(&self) -> &'static TurnRow {
        // SAFETY: checked by `turns` to be set, and never given back.
        unsafe { &*self.row.load(Ordering::Relaxed) }
    }

    /// A stream that was not seen before.
    #[cold]
    fn take_up(&'static self, name: u64) -> Option<&'static Stream> {
        let _errno = KeepErrno::new();
        let card = match place::current() {
            Place::Counted(process, card) if process.is_gated(card) => {
                let words = process.verdict().and_then(|verdict| verdict.card(card.0));
                let words = words.map_or(core::ptr::null_mut(), |words| core::ptr::from_ref(words).cast_mut());
                Some((card.0, words))
            }
            _ => None,
        };
        self.streams.add(self.row(), name, card)
    }

    fn ring(&self) {
        // SAFETY: null or mapped for ever with the full size.
        if let Some(reports) = unsafe { TurnReports::from_ptr(self.reports.load(Ordering::Acquire)) } {
            reports.bell().fetch_add(1, Ordering::AcqRel);
            os::shared_futex_wake_all(reports.bell());
        }
    }

    /// Waits until launches run, or nobody is there who could say so. Whether the process has rung: then it says that it
    /// wants to launch until the launch itself is told, so that the agent does not answer before it can see why.
    #[cold]
    fn wait_for_gate(&self, place: &Stream, words: Option<&VerdictCard>, stream: u64, form: Form) -> bool {
        let _errno = KeepErrno::new();
        let (Some(words), Ok(process)) = (words, process()) else {
            return false;
        };
        let card = place.card();
        let mut asked = false;
        loop {
            let gate = words.gate.load(Ordering::Acquire);
            if gate & GATE_CLOSED == 0 || !process.agent_is_heard() {
                if gate & GATE_RING != 0 && !asked && self.streams.marked_ns(self.row(), card) == 0 {
                    self.row().ask(card, os::now_ns());
                    if let Some(bell) = self.bells.get(card) {
                        bell.ring(card, words);
                    }
                    self.ring();
                    return true;
                }
                break;
            }
            if !asked && place.unmarked_ns.load(Ordering::Relaxed) > 0 {
                // So that the agent sees the end of what is on the card.
                if let Some(lane) = place.lane() {
                    self.mark(place, lane, place.publish(lane), stream, form);
                }
            }
            self.row().ask(card, os::now_ns());
            if !asked {
                self.ring();
            }
            asked = true;
            os::shared_futex_wait_for(&words.gate, gate, GATE_NAP_MS);
        }
        if asked {
            self.row().ask(card, 0);
        }
        false
    }

    /// Stands back for somebody more important who rang, until the agent has looked and its gate says what is next.
    fn listen(&self, place: &Stream, words: &VerdictCard, process: &Process, stream: u64, form: Form) {
        let card = place.card();
        let Some(bell) = self.bells.get(card) else { return };
        if !bell.is_rung(card, words) || !process.agent_is_heard() {
            return;
        }
        self.row().ask(card, os::now_ns());
        self.ring();
        while bell.is_unanswered(words) {
            os::sleep_us(ROOM_LEAST_US.cast_signed());
        }
        self.row().ask(card, 0);
        if words.gate.load(Ordering::Acquire) & GATE_CLOSED != 0 {
            self.wait_for_gate(place, Some(words), stream, form);
        }
    }

    /// Before a launch that is marked: waits until little is on the card, and paces if no agent does that.
    #[cold]
    fn make_room(&self, place: &Stream, function: u64, unmarked: u64, brief: bool, stream: u64, form: Form) -> Room {
        let mut room = Room::default();
        let _errno = KeepErrno::new();
        self.costs.collect();
        let card = place.card();
        let Ok(process) = process() else { return room };
        let most = place
            .words()
            .map(|words| words.most_ns.load(Ordering::Relaxed))
            .filter(|most| *most != 0)
            .unwrap_or(MOST_NS);
        let enough = || {
            let pending = self.streams.marked_ns(self.row(), card);
            let second = !place.is_behind()
                && place
                    .lane()
                    .is_none_or(|lane| lane.done_ns.load(Ordering::Acquire) >= place.before_ns.load(Ordering::Relaxed));
            let fits = pending.saturating_add(unmarked) <= most || (second && pending <= PAIR_NS);
            // With one that is under way this is the second.
            (pending == 0 || (fits && (second || !brief)), pending)
        };
        let (mut ready, mut pending) = enough();
        let waits = !ready;
        let mut news = if waits { os::now_ns() } else { 0 };
        while !ready {
            let now = os::now_ns();
            // Whoever waits for room wants to launch too.
            self.row().ask(card, now);
            // Half of the way each time, so that the card is not left without work for long.
            let left = pending.saturating_sub(now.saturating_sub(news));
            let us = (left / 2_000).clamp(ROOM_LEAST_US, ROOM_NAP_US);
            os::sleep_us(i64::try_from(us).unwrap_or(10));
            let before = pending;
            (ready, pending) = enough();
            if pending != before {
                news = now;
            } else if now.saturating_sub(news) > ROOM_PATIENCE_NS.max(pending.saturating_mul(4)) {
                break;
            }
        }
        if waits {
            self.row().ask(card, 0);
        }
        let cores = process.cores_permille(Card(card));
        if let Some(pace) = self.pace.get(card).filter(|_| cores > 0 && cores < 1000) {
            while !process.agent_is_heard() {
                match pace.wait_us(os::now_ns(), unmarked, cores) {
                    Ok(booked_ns) => {
                        room.paced_ns = booked_ns;
                        break;
                    }
                    Err(us) => os::sleep_us(i64::try_from(us).unwrap_or_default()),
                }
            }
        }
        if let Some(words) = place.words()
            && words.gate.load(Ordering::Acquire) & GATE_BRIEF != 0
        {
            self.listen(place, words, process, stream, form);
        }
        if let Some(words) = place.words()
            && waits
            && words.gate.load(Ordering::Acquire) & GATE_CLOSED != 0
        {
            // The turn ended meanwhile.
            self.wait_for_gate(place, Some(words), stream, form);
        }
        room.measured = !is_capturing() && self.costs.begin(function, stream, form);
        room
    }

    /// Lets the card say when it has done everything that was launched in a stream up to here.
    fn mark(&self, place: &Stream, lane: &Lane, launched_ns: u64, stream: u64, form: Form) {
        place.unmarked_ns.store(0, Ordering::Relaxed);
        if let Some(address) = self.device_address(lane)
            && write(stream, form, address, launched_ns)
        {
            // Only now: what the card will not say to be done is not waited for.
            lane.marked_ns.fetch_max(launched_ns, Ordering::AcqRel);
            return;
        }
        self.pinned.store(0, Ordering::Relaxed);
        if is_capturing() {
            // Nothing may be asked of the driver now that a capture does not allow.
            return;
        }
        // This driver does not write from streams: the thread waits for its own work instead.
        // SAFETY: the caller's stream.
        let code = unsafe {
            match form {
                Form::Legacy => cuStreamSynchronize(stream),
                Form::PerThread => cuStreamSynchronize_ptsz(stream),
            }
        };
        if code == SUCCESS {
            // Of a stream that the driver does not know a refusal says nothing.
            self.refused.fetch_add(1, Ordering::Relaxed);
            lane.done_ns.fetch_max(launched_ns, Ordering::AcqRel);
        }
    }

    /// Where the card writes for a lane; nothing when the driver does not pin the row.
    fn device_address(&self, lane: &Lane) -> Option<u64> {
        const REFUSALS: u32 = 8;
        const PORTABLE_AND_MAPPED: u32 = 3;
        const ALREADY: i32 = 712;
        let row = self.row.load(Ordering::Relaxed);
        let mut pinned = self.pinned.load(Ordering::Acquire);
        if pinned == 0 {
            if is_capturing() || self.refused.load(Ordering::Relaxed) >= REFUSALS {
                return None;
            }
            let host = u64::try_from(row.expose_provenance()).ok()?;
            // SAFETY: the row is mapped for ever; places for answers.
            unsafe {
                let code = cuMemHostRegister_v2(host, OWN_ROW, PORTABLE_AND_MAPPED);
                if (code != SUCCESS && code != ALREADY)
                    || cuMemHostGetDevicePointer_v2(&raw mut pinned, host, 0) != SUCCESS
                {
                    return None;
                }
            }
            self.pinned.store(pinned, Ordering::Release);
        }
        let offset = (&raw const lane.done_ns).addr().checked_sub(row.addr())?;
        pinned.checked_add(u64::try_from(offset).ok()?)
    }
}

fn write(stream: u64, form: Form, address: u64, value: u64) -> bool {
    // SAFETY: the caller's stream, and pinned memory that stays.
    unsafe {
        match form {
            Form::Legacy => {
                cuStreamWriteValue64_v2(stream, address, value, 0) == SUCCESS
                    || cuStreamWriteValue64(stream, address, value, 0) == SUCCESS
            }
            Form::PerThread => {
                cuStreamWriteValue64_v2_ptsz(stream, address, value, 0) == SUCCESS
                    || cuStreamWriteValue64_ptsz(stream, address, value, 0) == SUCCESS
            }
        }
    }
}

/// A context is gone, and its streams with it.
pub(crate) fn context_gone() {
    if ON.load(Ordering::Relaxed) == 0 {
        return;
    }
    if let (Some(turns), Ok(process)) = (turns(), process()) {
        turns.pinned.store(0, Ordering::Relaxed);
        if process.has_no_context() {
            turns.streams.forget_all(turns.row());
        }
    }
}
