//! Which moves: sets of pods that share a card, a link group or a node, the most worth for each move first.

use anyhow::Result;
use tessera_types::PodUid;

use super::estate::{Estate, Move, groups};

/// Sets tried before one is taken. Those with the fewest pods come first, so that on a large cluster the rest is left.
const TRIALS: usize = 400;
/// What a set must be worth, in cards.
const LEAST: f64 = 0.05;

/// Takes sets of moves, the best one first, until `most` moves are made or nothing is worth a move.
pub(super) fn search(estate: &mut Estate, most: usize) -> Result<Vec<Move>> {
    let mut moves = Vec::new();
    while moves.len() < most {
        let now = estate.free();
        let mut best: Option<(f64, Vec<PodUid>)> = None;
        for pods in sets(estate, most - moves.len()) {
            let Some((_, undos)) = try_all(estate, &pods)? else {
                continue;
            };
            let then = estate.free();
            for undo in undos.into_iter().rev() {
                estate.undo(undo)?;
            }
            let worth = then.value() - now.value();
            let each = worth / u32::try_from(pods.len()).map_or(f64::MAX, f64::from);
            let no_less = then.cards >= now.cards && then.nodes >= now.nodes && then.groups >= now.groups;
            if no_less && worth >= LEAST && best.as_ref().is_none_or(|(other, _)| each > *other + 1e-9) {
                best = Some((each, pods));
            }
        }
        let Some((_, pods)) = best else { break };
        let Some((made, _)) = try_all(estate, &pods)? else {
            break;
        };
        moves.extend(made);
    }
    Ok(moves)
}

type Tried = (Vec<Move>, Vec<super::estate::Undo>);

/// Moves all of them, or none.
fn try_all(estate: &mut Estate, pods: &[PodUid]) -> Result<Option<Tried>> {
    let (mut moves, mut undos) = (Vec::new(), Vec::new());
    for uid in pods {
        match estate.try_move(uid)? {
            Some((one, undo)) => {
                moves.push(one);
                undos.push(undo);
            }
            None => {
                for undo in undos.into_iter().rev() {
                    estate.undo(undo)?;
                }
                return Ok(None);
            }
        }
    }
    Ok(Some((moves, undos)))
}

/// Sets of up to `most` pods that can all be moved, each all that uses one card, link group or node; the largest pod
/// of a set first.
fn sets(estate: &Estate, most: usize) -> Vec<Vec<PodUid>> {
    let snapshot = estate.snapshot();
    let mut sets: Vec<Vec<PodUid>> = Vec::new();
    for node in snapshot.nodes() {
        let cards = node.cards().len();
        let mut units: Vec<Vec<usize>> = (0..cards).map(|card| vec![card]).collect();
        units.extend(groups(node));
        units.push((0..cards).collect());
        for unit in units {
            let tenants = unit.iter().flat_map(|card| node.tenants(*card));
            let mut pods: Vec<PodUid> = tenants.map(|booking| booking.pod.uid.clone()).collect();
            pods.sort();
            pods.dedup();
            if pods.is_empty() || pods.len() > most || !pods.iter().all(|uid| estate.moves(uid)) {
                continue;
            }
            pods.sort_by_key(|uid| (std::cmp::Reverse(estate.size(uid)), uid.clone()));
            if !sets.contains(&pods) {
                sets.push(pods);
            }
        }
    }
    // A stable sort: of as many pods, in the order of nodes and cards.
    sets.sort_by_key(Vec::len);
    sets.truncate(TRIALS);
    sets
}
