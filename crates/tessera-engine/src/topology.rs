//! The best linked set of cards.
//!
//! Wanted is the set of k with the largest sum of pair scores, and of equal sets the first in the lexicographic order
//! of examination. The search is depth first in that order and cuts a branch as soon as even its most favourable
//! completion would not beat the best set found, so it stores one path and never a list of sets.

use crate::vendor::Candidate;

/// How many branches are looked at before the best set found so far is taken. Nodes have at most a few dozen cards;
/// recorded topologies of 8 and 16 cards need far fewer.
const BRANCHES_MAX: u32 = 200_000;

/// A chosen set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BestSet {
    /// Indices into the candidates, ascending.
    pub members: Vec<usize>,
    /// Sum of pair scores. For one card: minus the sum of its links to the others.
    pub value: i64,
}

/// Chooses `count` of the candidates, which stand in the order of examination. `None` if there are too few.
///
/// One card: that with the weakest links to the others, so that well linked groups stay whole. A card that occurs
/// several times (hardware instances) has no link to itself, and its first occurrences are taken first.
#[must_use]
pub fn best_set(candidates: &[Candidate<'_>], count: usize) -> Option<BestSet> {
    let all: Vec<usize> = (0..candidates.len()).collect();
    best_of(candidates, &all, count)
}

/// Chooses one of the candidates for a share: that with the weakest links to the others, so that well linked groups stay
/// whole; of equal ones that with the weakest links to cards that nobody uses, so that a group that is broken already is
/// used up before the next one; of these the first. `in_use` is asked by the candidates' positions. `None` without any.
#[must_use]
pub fn best_single(candidates: &[Candidate<'_>], in_use: impl Fn(usize) -> bool) -> Option<usize> {
    let links = |at: usize, counts: &dyn Fn(usize) -> bool| -> i64 {
        let others = (0..candidates.len()).filter(|other| *other != at && counts(*other));
        others
            .map(|other| link(candidates, at, other))
            .fold(0, i64::saturating_add)
    };
    let unused = |at: usize| !in_use(candidates[at].position);
    // `min_by_key` keeps the first of equal ones.
    (0..candidates.len()).min_by_key(|at| (links(*at, &|_| true), links(*at, &unused)))
}

/// As [`best_set`], with all cards on one NUMA node: the best over the NUMA nodes, on a tie the one examined first.
#[must_use]
pub fn best_set_on_one_numa_node(candidates: &[Candidate<'_>], count: usize) -> Option<Vec<usize>> {
    let mut groups: Vec<(i32, Vec<usize>)> = Vec::new();
    for (at, candidate) in candidates.iter().enumerate() {
        match groups.iter_mut().find(|(numa, _)| *numa == candidate.card.numa) {
            Some((_, members)) => members.push(at),
            None => groups.push((candidate.card.numa, vec![at])),
        }
    }
    let mut best: Option<BestSet> = None;
    for (_, members) in &groups {
        if let Some(set) = best_of(candidates, members, count)
            && best.as_ref().is_none_or(|best| set.value > best.value)
        {
            best = Some(set);
        }
    }
    best.map(|best| best.members)
}

fn link(candidates: &[Candidate<'_>], earlier: usize, later: usize) -> i64 {
    let other = &candidates[later].card.id;
    candidates[earlier].card.link_scores.get(other).copied().unwrap_or(0)
}

fn best_of(candidates: &[Candidate<'_>], group: &[usize], count: usize) -> Option<BestSet> {
    if count == 0 || group.len() < count {
        return None;
    }
    if count == 1 && group.len() > 1 {
        let links = |at: usize| -> i64 {
            let others = group.iter().filter(|other| **other != at);
            others
                .map(|other| link(candidates, at, *other))
                .fold(0, i64::saturating_add)
        };
        // `min_by_key` keeps the first of equal ones.
        let at = group.iter().copied().min_by_key(|at| links(*at))?;
        return Some(BestSet {
            members: vec![at],
            value: links(at).saturating_neg(),
        });
    }
    let n = group.len();
    let mut table = vec![0_i64; n * n];
    for i in 0..n {
        for j in i + 1..n {
            let score = link(candidates, group[i], group[j]);
            table[i * n + j] = score;
            table[j * n + i] = score;
        }
    }
    let same_as_previous: Vec<bool> = (0..n)
        .map(|i| i > 0 && candidates[group[i]].position == candidates[group[i - 1]].position)
        .collect();
    let mut search = Search {
        n,
        count,
        table: &table,
        same_as_previous: &same_as_previous,
        chosen: Vec::new(),
        best: None,
        branches: 0,
        gains: Vec::new(),
    };
    search.descend(0, 0);
    search.best.map(|(value, members)| BestSet {
        members: members.into_iter().map(|at| group[at]).collect(),
        value,
    })
}

struct Search<'a> {
    n: usize,
    count: usize,
    /// Symmetric, row by row.
    table: &'a [i64],
    same_as_previous: &'a [bool],
    chosen: Vec<usize>,
    best: Option<(i64, Vec<usize>)>,
    branches: u32,
    gains: Vec<i64>,
}

impl Search<'_> {
    fn descend(&mut self, from: usize, value: i64) {
        if self.chosen.len() == self.count {
            if self.best.as_ref().is_none_or(|(best, _)| value > *best) {
                self.best = Some((value, self.chosen.clone()));
            }
            return;
        }
        let missing = self.count - self.chosen.len();
        for next in from..=self.n - missing {
            // Of a card's occurrences the first ones are taken.
            if self.same_as_previous[next] && self.chosen.last() != Some(&(next - 1)) {
                continue;
            }
            self.branches += 1;
            if self.best.is_some() && (self.branches > BRANCHES_MAX || !self.can_win(next, value, missing)) {
                // What follows has a subset of the members, so it cannot win either.
                return;
            }
            let gain = self
                .chosen
                .iter()
                .fold(0_i64, |sum, at| sum.saturating_add(self.table[at * self.n + next]));
            self.chosen.push(next);
            self.descend(next + 1, value.saturating_add(gain));
            self.chosen.pop();
        }
    }

    /// Whether `missing` members from `from` on could beat the best set: each candidate is worth its links to the
    /// chosen ones and half of its strongest links to other candidates; the best `missing` of them bound the gain.
    fn can_win(&mut self, from: usize, value: i64, missing: usize) -> bool {
        let Some((best, _)) = &self.best else { return true };
        let mut gains = std::mem::take(&mut self.gains);
        gains.clear();
        let mut peers: Vec<i64> = Vec::with_capacity(self.n);
        for candidate in from..self.n {
            let row = &self.table[candidate * self.n..(candidate + 1) * self.n];
            peers.clear();
            peers.extend((from..self.n).filter(|peer| *peer != candidate).map(|peer| row[peer]));
            peers.sort_unstable_by(|a, b| b.cmp(a));
            let strongest = peers
                .iter()
                .take(missing - 1)
                .fold(0_i64, |sum, link| sum.saturating_add(*link));
            let chosen = self.chosen.iter().fold(0_i64, |sum, at| sum.saturating_add(row[*at]));
            // Doubled, so that half a link stays a whole number.
            gains.push(chosen.saturating_mul(2).saturating_add(strongest));
        }
        gains.sort_unstable_by(|a, b| b.cmp(a));
        let gain = gains
            .iter()
            .take(missing)
            .fold(0_i64, |sum, gain| sum.saturating_add(*gain));
        let wins = value.saturating_mul(2).saturating_add(gain) > best.saturating_mul(2);
        self.gains = gains;
        wins
    }
}
