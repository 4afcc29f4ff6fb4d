//! Feeding a sequence of arrivals to a cluster, and what is measured on the way.

use crate::cluster::Cluster;
use crate::model::Request;

/// Points of a curve: 0 to 130 % of the cluster's cards arrived.
pub const POINTS: usize = 131;

/// What a replay gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Requests that arrived.
    pub arrivals: u32,
    /// Requests that fitted nowhere.
    pub failed: u32,
    /// Milli that arrived, failures included.
    pub arrived: u64,
    /// Milli taken at the end.
    pub used: u64,
    /// Fragmentation at the end, milli.
    pub fragmentation: f64,
    /// 64-bit FNV-1a hash over the decisions: row of the node as two bytes, low byte first, then the mask of cards;
    /// `FF FF 00` for a refusal.
    pub hash: u64,
    /// Percent of the cluster's cards that are allocated at each whole percent arrived. `None` where nothing arrived.
    pub allocation: Vec<Option<f64>>,
}

impl Outcome {
    /// Allocation in percent when `percent` arrived.
    #[must_use]
    pub fn allocation_at(&self, percent: usize) -> Option<f64> {
        self.allocation.get(percent).copied().flatten()
    }
}

/// Replays `arrivals` on `cluster`, whose cards are `capacity` milli altogether.
pub fn run<'a>(cluster: &mut Cluster, capacity: u32, arrivals: impl Iterator<Item = &'a Request>) -> Outcome {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let (mut count, mut failed, mut arrived) = (0, 0, 0_u64);
    let mut curve = Curve::default();
    for request in arrivals {
        count += 1;
        arrived += u64::from(request.demand());
        cluster.see(request);
        match cluster
            .decide(request)
            .filter(|placement| cluster.take(request, *placement))
        {
            Some(placement) => {
                let [low, high, ..] = placement.node.to_le_bytes();
                [low, high, placement.cards].into_iter().for_each(&mut eat);
            }
            None => {
                failed += 1;
                [0xff, 0xff, 0].into_iter().for_each(&mut eat);
            }
        }
        curve.record(arrived, cluster.used(), capacity);
    }
    Outcome {
        arrivals: count,
        failed,
        arrived,
        used: cluster.used(),
        fragmentation: cluster.fragmentation(),
        hash,
        allocation: curve.points(),
    }
}

/// Sums and counts of the records at each whole percent.
struct Curve {
    sums: [(f64, u32); POINTS + 1],
}

impl Default for Curve {
    fn default() -> Self {
        Self {
            sums: [(0.0, 0); POINTS + 1],
        }
    }
}

impl Curve {
    fn record(&mut self, arrived: u64, used: u64, capacity: u32) {
        let percent = |milli: u64| 100.0 * milli as f64 / f64::from(capacity);
        let at = percent(arrived).round_ties_even();
        let point = self.sums.iter_mut().enumerate().find(|(index, _)| *index as f64 == at);
        if let Some((_, (sum, count))) = point {
            *sum += hundredths(percent(used));
            *count += 1;
        }
    }

    fn points(&self) -> Vec<Option<f64>> {
        let at = |index: usize| self.sums.get(index).copied().unwrap_or((0.0, 0));
        (0..POINTS)
            .map(|index| {
                let (mut sum, mut count) = at(index);
                if count == 0 {
                    for near in [index.wrapping_sub(1), index + 1] {
                        sum += at(near).0;
                        count += at(near).1;
                    }
                }
                (count > 0).then(|| hundredths(sum / f64::from(count)))
            })
            .collect()
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
