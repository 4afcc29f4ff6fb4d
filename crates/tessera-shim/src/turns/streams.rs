//! Which stream works on which card, and in which lane it tells so.
//!
//! Found without a lock by what names the stream; taken and given up under one. A lane belongs to one stream at a time
//! as long as there are lanes: the card writes to it in the stream's order.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use tessera_region::{LANES, Lane, MARK_NS, TurnRow, VerdictCard};

use crate::{address::Lock, memory::Form};

const PLACES: usize = 256;
/// A place that was given up; searches go on behind it.
const GONE: u64 = 4;

/// One stream. Valid when zero.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Stream {
    key: AtomicU64,
    words: AtomicPtr<VerdictCard>,
    /// The lane; null when work of this stream passes freely.
    place: AtomicPtr<Lane>,
    /// Place of the lane, plus one; 0 for none.
    lane: AtomicU32,
    card: AtomicU32,
    /// Predicted work since the last mark, in nanoseconds.
    pub(super) unmarked_ns: AtomicU64,
    /// What had been launched before the newest launch; true only while nothing is unpublished.
    pub(super) before_ns: AtomicU64,
    /// Predicted work that the lane does not tell of yet, in nanoseconds: a line that the card writes to is not written
    /// for each launch.
    pub(super) unpublished_ns: AtomicU64,
}

/// A launch as it was counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    /// Its predicted work, in nanoseconds.
    pub(super) cost_ns: u64,
    /// What the lane told of with it.
    pub(super) launched_ns: u64,
    /// [`Stream::before_ns`] until then.
    pub(super) before_ns: u64,
}

/// So much predicted work is told of at the latest.
const PUBLISH_NS: u64 = MARK_NS / 4;

impl Stream {
    /// The lane; nothing when work passes freely.
    #[inline]
    pub(super) fn lane(&self) -> Option<&'static Lane> {
        // SAFETY: null, or a lane of a row that is never given back.
        unsafe { self.place.load(Ordering::Relaxed).cast_const().as_ref() }
    }

    /// Counts a launch that needs nothing else: its mark is not due, and the gate stands open. No stream without
    /// a lane has words. Says
    /// whether it did.
    #[inline]
    pub(super) fn count(&self, cost_ns: u64) -> bool {
        let Some(words) = self.words() else { return false };
        if words.gate.load(Ordering::Acquire) != 0 {
            return false;
        }
        if self.unmarked_ns.load(Ordering::Relaxed).wrapping_add(cost_ns) >= MARK_NS {
            return false;
        }
        let before = self.unmarked_ns.fetch_add(cost_ns, Ordering::Relaxed);
        let unpublished = self
            .unpublished_ns
            .fetch_add(cost_ns, Ordering::Relaxed)
            .wrapping_add(cost_ns);
        // The first one behind a mark says that this stream works.
        if (before == 0 || unpublished >= PUBLISH_NS)
            && let Some(lane) = self.lane()
        {
            let launched = self.publish(lane);
            self.before_ns.store(launched.wrapping_sub(cost_ns), Ordering::Relaxed);
        }
        true
    }

    /// Lets the lane tell of all that was launched; how much that is.
    #[inline]
    pub(super) fn publish(&self, lane: &Lane) -> u64 {
        let more = self.unpublished_ns.swap(0, Ordering::Relaxed);
        lane.launched_ns.fetch_add(more, Ordering::AcqRel).wrapping_add(more)
    }

    /// Tells of a launch at once; its work is among [`Stream::unmarked_ns`] already.
    #[inline]
    pub(super) fn count_now(&self, lane: &Lane, cost_ns: u64) -> Counted {
        self.unpublished_ns.fetch_add(cost_ns, Ordering::Relaxed);
        let launched_ns = self.publish(lane);
        let before_ns = self
            .before_ns
            .swap(launched_ns.wrapping_sub(cost_ns), Ordering::Relaxed);
        Counted {
            cost_ns,
            launched_ns,
            before_ns,
        }
    }

    /// Takes a launch back that the driver refused. Where another thread has launched in this stream meanwhile the lane
    /// goes on telling of it, until the next mark: nobody waits for work without one.
    #[cold]
    pub(super) fn take_back(&self, lane: &Lane, counted: Counted) {
        let less = |ns: u64| Some(ns.saturating_sub(counted.cost_ns));
        let (Ok(_) | Err(_)) = self
            .unmarked_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let without = counted.launched_ns.wrapping_sub(counted.cost_ns);
        // A mark that covers it will be reached; then it is done.
        if lane.marked_ns.load(Ordering::Acquire) <= without
            && lane
                .launched_ns
                .compare_exchange(counted.launched_ns, without, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            self.before_ns.store(counted.before_ns, Ordering::Relaxed);
        }
    }

    /// The card by its place in the grant.
    pub(super) fn card(&self) -> usize {
        usize::try_from(self.card.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// The words of the card in the verdict.
    #[inline]
    pub(super) fn words(&self) -> Option<&'static VerdictCard> {
        // SAFETY: null, or words of a mapping that is never given back.
        unsafe { self.words.load(Ordering::Relaxed).cast_const().as_ref() }
    }
}

/// What names a stream: its handle, or for the default streams the context (0 where there is only one) or the thread.
#[inline]
pub(super) fn key(stream: u64, form: Form, context: impl FnOnce() -> u64) -> u64 {
    if stream > 2 {
        stream << 2 | 1
    } else {
        default_key(stream, form, context())
    }
}

#[inline]
fn default_key(stream: u64, form: Form, context: u64) -> u64 {
    match (stream, form) {
        (0, Form::PerThread) | (2, _) => {
            // SAFETY: no conditions.
            let thread = unsafe { libc::pthread_self() };
            (thread ^ context.rotate_left(20)) << 2 | 3
        }
        _ => context << 2 | 2,
    }
}

/// All streams that were seen. Valid when zero.
#[repr(C)]
pub(super) struct Streams {
    places: [Stream; PLACES],
    lanes_used: AtomicU32,
    lock: Lock,
}

impl Streams {
    fn path(&self, key: u64) -> impl Iterator<Item = &Stream> {
        let (before, after) = self.places.split_at(Self::first(key).min(PLACES));
        after.iter().chain(before)
    }

    /// The stream with this name if it lies where it is looked for first.
    #[inline]
    pub(super) fn find_quick(&self, key: u64) -> Option<&Stream> {
        let first = self.places.get(Self::first(key))?;
        (first.key.load(Ordering::Acquire) == key).then_some(first)
    }

    /// The stream with this name.
    #[inline]
    pub(super) fn find(&self, key: u64) -> Option<&Stream> {
        let first = self.places.get(Self::first(key))?;
        if first.key.load(Ordering::Acquire) == key {
            return Some(first);
        }
        self.find_further(key)
    }

    #[cold]
    fn find_further(&self, key: u64) -> Option<&Stream> {
        for stream in self.path(key) {
            match stream.key.load(Ordering::Acquire) {
                known if known == key => return Some(stream),
                0 => return None,
                _ => {}
            }
        }
        None
    }

    fn first(key: u64) -> usize {
        usize::try_from(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).unwrap_or_default()
    }

    /// Takes a stream up. `card` is its place in the grant and its words, nothing when its work passes freely.
    #[cold]
    pub(super) fn add(&self, row: &TurnRow, key: u64, card: Option<(usize, *mut VerdictCard)>) -> Option<&Stream> {
        let _guard = self.lock.hold();
        if let Some(known) = self.find(key) {
            return Some(known);
        }
        let lane = match card {
            None => 0,
            Some((card, _)) => self.lane(row, card)?,
        };
        let free = |stream: &&Stream| matches!(stream.key.load(Ordering::Relaxed), 0 | GONE);
        // All taken: a stream with nothing on the card gives up its place; it is taken up again when it comes.
        let idle = || self.path(key).find(|stream| stream.is_idle());
        let Some(place) = self.path(key).find(free).or_else(idle) else {
            // All busy: it tells together with another one.
            return self
                .places
                .iter()
                .find(|stream| stream.lane.load(Ordering::Relaxed) == lane);
        };
        place.key.store(GONE, Ordering::Release);
        let (number, words) = card.unwrap_or((0, core::ptr::null_mut()));
        place.words.store(words, Ordering::Relaxed);
        place
            .card
            .store(u32::try_from(number).unwrap_or(u32::MAX), Ordering::Relaxed);
        place.lane.store(lane, Ordering::Relaxed);
        let found = lane
            .checked_sub(1)
            .and_then(|index| row.lanes().get(usize::try_from(index).ok()?));
        let found = found.map_or(core::ptr::null_mut(), |lane| core::ptr::from_ref(lane).cast_mut());
        place.place.store(found, Ordering::Relaxed);
        place.unmarked_ns.store(0, Ordering::Relaxed);
        place.before_ns.store(0, Ordering::Relaxed);
        place.unpublished_ns.store(0, Ordering::Relaxed);
        place.key.store(key, Ordering::Release);
        Some(place)
    }

    /// A lane for a card: a new one, one of a stream that is gone or idle, or as a last resort one that is shared.
    fn lane(&self, row: &TurnRow, card: usize) -> Option<u32> {
        let number = u32::try_from(card.checked_add(1)?).ok()?;
        let used = self.lanes_used.load(Ordering::Relaxed);
        let in_use = |index: u32| {
            self.places.iter().any(|stream| {
                stream.lane.load(Ordering::Relaxed) == index.saturating_add(1)
                    && !matches!(stream.key.load(Ordering::Relaxed), 0 | GONE)
            })
        };
        let lane_at = |index: u32| row.lanes().get(usize::try_from(index).unwrap_or(LANES));
        let idle = |index: &u32| lane_at(*index).is_some_and(|lane| lane.read().1 == 0);
        let found = (0..used).find(|index| idle(index) && !in_use(*index)).or_else(|| {
            let next = (usize::try_from(used).ok()? < LANES).then_some(used)?;
            self.lanes_used.store(next.saturating_add(1), Ordering::Relaxed);
            Some(next)
        });
        let found = found.or_else(|| {
            let stream = self.places.iter().find(|stream| stream.is_idle())?;
            stream.key.store(GONE, Ordering::Release);
            stream.lane.load(Ordering::Relaxed).checked_sub(1)
        });
        let Some(index) = found else {
            let same = self.places.iter().find(|stream| {
                usize::try_from(stream.card.load(Ordering::Relaxed)) == Ok(card)
                    && stream.lane.load(Ordering::Relaxed) != 0
            })?;
            return Some(same.lane.load(Ordering::Relaxed));
        };
        lane_at(index)?.card.store(number, Ordering::Release);
        Some(index.saturating_add(1))
    }

    /// Gives a stream up.
    pub(super) fn forget(&self, key: u64) {
        let _guard = self.lock.hold();
        if let Some(stream) = self.find(key) {
            stream.key.store(GONE, Ordering::Release);
        }
    }

    /// Gives all up, and what they had on cards: their contexts are gone.
    pub(super) fn forget_all(&self, row: &TurnRow) {
        let _guard = self.lock.hold();
        for stream in &self.places {
            if stream.key.load(Ordering::Relaxed) != 0 {
                stream.key.store(GONE, Ordering::Release);
                stream.unpublished_ns.store(0, Ordering::Relaxed);
            }
        }
        for lane in row.lanes() {
            lane.done_ns
                .store(lane.launched_ns.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Predicted work on a card that the card will say when it is done, in nanoseconds.
    pub(super) fn marked_ns(&self, row: &TurnRow, card: usize) -> u64 {
        let number = u32::try_from(card.saturating_add(1)).unwrap_or_default();
        let used = usize::try_from(self.lanes_used.load(Ordering::Relaxed)).unwrap_or(LANES);
        row.lanes()
            .iter()
            .take(used)
            .filter(|lane| lane.card.load(Ordering::Relaxed) == number)
            .fold(0_u64, |sum, lane| sum.saturating_add(lane.marked_pending_ns()))
    }

    /// All that is known, for a card that was waited for.
    pub(super) fn each(&self, mut work: impl FnMut(&Stream)) {
        for stream in &self.places {
            if !matches!(stream.key.load(Ordering::Acquire), 0 | GONE) {
                work(stream);
            }
        }
    }
}

impl Stream {
    fn is_idle(&self) -> bool {
        !matches!(self.key.load(Ordering::Relaxed), 0 | GONE)
            && self.lane().is_some_and(|lane| lane.marked_pending_ns() == 0)
    }

    /// Whether something was launched that the lane does not tell of.
    pub(super) fn is_behind(&self) -> bool {
        self.unpublished_ns.load(Ordering::Relaxed) != 0
    }

    /// Takes everything of this stream for done that was launched up to here.
    pub(super) fn done(&self, launched_ns: u64) {
        if let Some(lane) = self.lane() {
            lane.done_ns.fetch_max(launched_ns, Ordering::AcqRel);
            if lane.launched_ns.load(Ordering::Relaxed) == launched_ns && !self.is_behind() {
                self.unmarked_ns.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn fresh<T>() -> &'static T {
        let (page, _) = crate::os::private_memory(size_of::<T>(), false);
        // SAFETY: zeroed memory of the size, never given back; zero is valid for both types of these tests.
        unsafe { &*page.cast::<T>() }
    }

    fn card() -> Option<(usize, *mut VerdictCard)> {
        Some((2, core::ptr::null_mut()))
    }

    #[test]
    fn a_stream_keeps_its_lane_and_a_new_one_gets_another() {
        let (streams, row): (&Streams, &TurnRow) = (fresh(), fresh());
        let a = key(0x1000, Form::Legacy, || 0);
        let b = key(0x2000, Form::PerThread, || 0);
        assert!(streams.find(a).is_none());
        let first = streams.add(row, a, card()).unwrap();
        let second = streams.add(row, b, card()).unwrap();
        assert!(core::ptr::eq(first, streams.find(a).unwrap()));
        assert!(!core::ptr::eq(first.lane().unwrap(), second.lane().unwrap()));
        assert_eq!(first.card(), 2);
        let free = streams.add(row, key(0x3000, Form::Legacy, || 0), None).unwrap();
        assert!(free.lane().is_none());
    }

    #[test]
    fn a_lane_of_a_destroyed_stream_is_used_again_when_its_work_is_done() {
        let (streams, row): (&Streams, &TurnRow) = (fresh(), fresh());
        let name = |n: u64| key(n << 8, Form::Legacy, || 0);
        let lane = |n: u64| core::ptr::from_ref(streams.find(name(n)).unwrap().lane().unwrap());
        streams.add(row, name(1), card()).unwrap();
        let first = lane(1);
        row.lanes().first().unwrap().launched_ns.store(10, Ordering::Relaxed);
        streams.forget(name(1));
        streams.add(row, name(2), card()).unwrap();
        assert_ne!(lane(2), first, "the card has not said that the first is done");
        row.lanes().first().unwrap().done_ns.store(10, Ordering::Relaxed);
        streams.add(row, name(3), card()).unwrap();
        assert_eq!(lane(3), first);
    }

    #[test]
    fn more_streams_than_places_still_have_a_lane() {
        let (streams, row): (&Streams, &TurnRow) = (fresh(), fresh());
        for n in 1..2000_u64 {
            let stream = streams.add(row, key(n << 6, Form::Legacy, || 0), card()).unwrap();
            let lane = stream.lane().unwrap();
            assert_eq!((stream.card(), lane.card.load(Ordering::Relaxed)), (2, 3));
            // Every second one stays busy, until all lanes are.
            lane.launched_ns.fetch_add(n % 2, Ordering::Relaxed);
            lane.marked_ns.fetch_add(n % 2, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_launch_that_is_taken_back_leaves_nothing() {
        let (streams, row): (&Streams, &TurnRow) = (fresh(), fresh());
        let stream = streams.add(row, key(64, Form::Legacy, || 0), card()).unwrap();
        let lane = stream.lane().unwrap();
        let launch = |cost| {
            stream.unmarked_ns.fetch_add(cost, Ordering::Relaxed);
            stream.count_now(lane, cost)
        };
        let told = || {
            let unmarked = stream.unmarked_ns.load(Ordering::Relaxed);
            (lane.read(), unmarked, stream.before_ns.load(Ordering::Relaxed))
        };
        launch(300);
        launch(40);
        let before = told();
        assert_eq!(before, ((340, 340), 340, 300));
        stream.take_back(lane, launch(5_000));
        assert_eq!(told(), before);
        // Another thread launched behind it: it stays, and the next mark covers it.
        let refused = launch(5_000);
        launch(60);
        stream.take_back(lane, refused);
        assert_eq!(lane.read(), (5_400, 5_400));
        assert_eq!(streams.marked_ns(row, 2), 0, "nobody waits for it");
        // Another thread marked it: it is done when the card says so, and what comes then is not hidden.
        let refused = launch(5_000);
        lane.marked_ns.store(refused.launched_ns, Ordering::Relaxed);
        stream.take_back(lane, refused);
        lane.done_ns.store(refused.launched_ns, Ordering::Relaxed);
        launch(70);
        assert_eq!(lane.read().1, 70);
    }

    #[test]
    fn default_streams_are_named_by_context_or_thread() {
        let legacy = |stream| key(stream, Form::Legacy, || 5);
        assert_eq!(legacy(0), legacy(1));
        assert_ne!(legacy(0), key(0, Form::Legacy, || 6));
        assert_ne!(legacy(0), legacy(2));
        assert_eq!(key(0, Form::PerThread, || 5), legacy(2));
        assert_eq!(key(1, Form::PerThread, || 5), legacy(1));
    }

    #[test]
    fn only_what_the_card_will_report_is_waited_for() {
        let (streams, row): (&Streams, &TurnRow) = (fresh(), fresh());
        let stream = streams.add(row, key(64, Form::Legacy, || 0), card()).unwrap();
        let lane = stream.lane().unwrap();
        lane.launched_ns.store(900, Ordering::Relaxed);
        lane.marked_ns.store(600, Ordering::Relaxed);
        assert_eq!((streams.marked_ns(row, 2), streams.marked_ns(row, 1)), (600, 0));
        stream.done(900);
        assert_eq!(streams.marked_ns(row, 2), 0);
        assert_eq!(lane.read().1, 0);
    }
}
