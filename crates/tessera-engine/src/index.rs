//! The winner without asking every node again.
//!
//! For each shape of pods that comes more than once a [`Ranking`] keeps the order in which nodes win. A node is fitted
//! again only when its state is another one than when it was ranked, which is told by the identity of the state: a
//! published state never changes, and a weak reference keeps its address from being used anew. So a decision costs what
//! changed since the last one for the same shape, plus one comparison for each chunk of the node table.
//!
//! [`Engine::decide`](crate::Engine::decide) is the plain way to the same answer.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tessera_types::{NodeName, NodePolicy};

use crate::decide::{Candidates, NodeFit, Question};
use crate::node::NodeState;
use crate::shape::Shape;
use crate::snapshot::{Chunk, Snapshot};

/// Rankings kept; the one unused for longest makes room.
const KEPT: usize = 16;
/// Shapes remembered of which one pod was seen. The second pod of a shape gets it a ranking.
const SEEN: usize = 64;
/// Up to so many candidates are asked one by one.
const FEW: usize = 16;
/// How many ranked nodes are looked for in a list of candidates by reading it, before the list is put into a set.
const READS: usize = 4;

/// What orders fitting nodes: the least wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    score: i64,
    score_after: i64,
    name: NodeName,
    /// Where the node is. A node that left and came back may be elsewhere, and then stands here twice for a moment.
    slot: usize,
}

impl Key {
    fn new(policy: NodePolicy, name: &NodeName, score: f64, score_after: f32, slot: usize) -> Self {
        Self {
            score: rank(policy, score),
            score_after: rank(policy, f64::from(score_after)),
            name: name.clone(),
            slot,
        }
    }

    fn of(policy: NodePolicy, fit: &NodeFit) -> Self {
        Self::new(policy, &fit.node, fit.score, fit.score_after, usize::MAX)
    }
}

/// An integer in the order of [`f64::total_cmp`], the better the less.
fn rank(policy: NodePolicy, value: f64) -> i64 {
    let bits = value.to_bits().cast_signed();
    let ascending = if bits < 0 { bits ^ i64::MAX } else { bits };
    if policy.least_wins() { ascending } else { !ascending }
}

#[derive(Debug, Default)]
struct RankedSlot {
    state: Weak<NodeState>,
    key: Option<Key>,
}

#[derive(Debug, Default)]
struct RankedChunk {
    state: Weak<Vec<Option<Arc<NodeState>>>>,
    slots: Vec<RankedSlot>,
}

/// The nodes that can hold pods of one shape, in the order in which they win.
#[derive(Debug)]
struct Ranking {
    shape: Arc<Shape>,
    chunks: Vec<RankedChunk>,
    order: BTreeSet<Key>,
    /// Slots of nodes on which room is kept for somebody: their answer depends on who asks.
    reserved: BTreeSet<usize>,
}

impl Ranking {
    fn new(shape: Arc<Shape>) -> Self {
        Self {
            shape,
            chunks: Vec::new(),
            order: BTreeSet::new(),
            reserved: BTreeSet::new(),
        }
    }

    /// Brings the ranking to the snapshot of `question`.
    fn follow(&mut self, question: &mut Question<'_>) {
        let chunks = question.snapshot().nodes.chunks();
        if self.chunks.len() != chunks.len() {
            for gone in self.chunks.iter().skip(chunks.len()) {
                for key in gone.slots.iter().filter_map(|slot| slot.key.as_ref()) {
                    self.order.remove(key);
                }
            }
            self.chunks.resize_with(chunks.len(), RankedChunk::default);
            self.reserved
                .retain(|slot| slot / crate::snapshot::CHUNK < chunks.len());
        }
        for (at, chunk) in chunks.iter().enumerate() {
            if self.chunks[at].state.as_ptr() != Arc::as_ptr(chunk) {
                self.follow_chunk(at, chunk, question);
            }
        }
    }

    fn follow_chunk(&mut self, at: usize, chunk: &Chunk, question: &mut Question<'_>) {
        let policy = self.shape.content.node_policy;
        let ranked = &mut self.chunks[at];
        ranked.state = Arc::downgrade(chunk);
        let length = ranked.slots.len().max(chunk.len());
        ranked.slots.resize_with(length, RankedSlot::default);
        for (place, slot) in ranked.slots.iter_mut().enumerate() {
            let number = at * crate::snapshot::CHUNK + place;
            let node = chunk.get(place).and_then(Option::as_ref);
            if node.map_or(std::ptr::null(), Arc::as_ptr) == slot.state.as_ptr() {
                continue;
            }
            if let Some(key) = slot.key.take() {
                self.order.remove(&key);
            }
            self.reserved.remove(&number);
            slot.state = node.map(Arc::downgrade).unwrap_or_default();
            let Some(node) = node else { continue };
            if !node.nominations().is_empty() {
                self.reserved.insert(number);
            } else if let Ok(placed) = match node.give_up(&question.shape) {
                Some(outcome) => outcome,
                None => question.fit(node),
            } {
                let key = Key::new(policy, node.name(), placed.score, placed.score_after, number);
                self.order.insert(key.clone());
                slot.key = Some(key);
            }
        }
    }

    fn winner(&self, question: &mut Question<'_>, candidates: Candidates<'_>) -> Option<NodeFit> {
        let policy = self.shape.content.node_policy;
        let snapshot = question.snapshot();
        let mut listed = Listed::new(candidates);
        let own = question.own_node();
        let own_state = own.as_ref().and_then(|own| snapshot.node(own.as_str()));
        let special = self.reserved.iter().filter_map(|slot| snapshot.nodes.at(*slot));
        let best = special
            .map(|node| &**node)
            .chain(own_state)
            .filter(|node| listed.has(node.name().as_str()))
            .filter_map(|node| question.ask(node).ok().map(|placed| NodeFit::new(node, &placed)))
            .min_by_key(|fit| Key::of(policy, fit));
        let ranked = self
            .order
            .iter()
            .filter(|key| own.as_ref() != Some(&key.name))
            .find(|key| listed.has(key.name.as_str()));
        match (ranked, best) {
            (Some(key), best) if best.as_ref().is_none_or(|best| *key < Key::of(policy, best)) => {
                let node = snapshot.nodes.at(key.slot)?;
                let placed = question.fit(node).ok()?;
                Some(NodeFit::new(node, &placed))
            }
            (_, best) => best,
        }
    }
}

/// The candidates, asked one name at a time. Nearly always the first name asked for is among them.
struct Listed<'a> {
    candidates: Candidates<'a>,
    reads: usize,
    set: Option<HashSet<&'a str>>,
}

impl<'a> Listed<'a> {
    fn new(candidates: Candidates<'a>) -> Self {
        Self {
            candidates,
            reads: 0,
            set: None,
        }
    }

    fn has(&mut self, name: &str) -> bool {
        if self.reads < READS {
            self.reads += 1;
            return match self.candidates {
                Candidates::All => true,
                Candidates::Listed(names) => names.contains(name),
                Candidates::Names(names) => {
                    // Names of nodes differ at their ends most often; looking there first spares most of the comparing.
                    let end = name.as_bytes().last_chunk::<4>();
                    let is = |listed: &String| listed.as_bytes().last_chunk() == end && listed == name;
                    names.iter().any(|listed| listed.len() == name.len() && is(listed))
                }
            };
        }
        let set = match self.candidates {
            Candidates::All => return true,
            Candidates::Names(names) => self
                .set
                .get_or_insert_with(|| names.iter().map(String::as_str).collect()),
            Candidates::Listed(names) => self.set.get_or_insert_with(|| names.iter().collect()),
        };
        set.contains(name)
    }
}

#[derive(Debug, Default)]
struct Rankings {
    /// Last used last.
    kept: Vec<Ranking>,
    /// Hashes of shapes; a collision makes a ranking one pod early.
    seen: Vec<u64>,
}

/// The rankings of one world and its snapshots.
#[derive(Debug, Default)]
pub(crate) struct Index(Mutex<Rankings>);

impl Index {
    /// The winner, or `None` if no candidate fits; `Err` if this question is cheaper to ask plainly: few candidates, or
    /// the first pod of its shape.
    pub(crate) fn winner(
        &self,
        question: &mut Question<'_>,
        candidates: Candidates<'_>,
    ) -> Result<Option<NodeFit>, AskPlainly> {
        let count = match candidates {
            Candidates::All => usize::MAX,
            Candidates::Names(names) => names.len(),
            Candidates::Listed(names) => names.len(),
        };
        if count <= FEW {
            return Err(AskPlainly);
        }
        let mut rankings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut rankings.kept;
        let mut ranking = match kept.iter().position(|known| Shape::same(&known.shape, &question.shape)) {
            Some(at) => kept.remove(at),
            None => {
                let hash = question.shape.hash();
                let Some(at) = rankings.seen.iter().position(|seen| *seen == hash) else {
                    if rankings.seen.len() >= SEEN {
                        rankings.seen.remove(0);
                    }
                    rankings.seen.push(hash);
                    return Err(AskPlainly);
                };
                rankings.seen.remove(at);
                if rankings.kept.len() >= KEPT {
                    drop(rankings.kept.remove(0));
                }
                Ranking::new(Arc::clone(&question.shape))
            }
        };
        ranking.follow(question);
        let winner = ranking.winner(question, candidates);
        rankings.kept.push(ranking);
        Ok(winner)
    }
}

/// See [`Index::winner`].
#[derive(Debug)]
pub(crate) struct AskPlainly;

impl Snapshot {
    /// The index that this snapshot shares with its world.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }
}
