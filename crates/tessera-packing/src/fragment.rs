//! How much of a node's idle cards a random next pod is expected not to be able to use.

use crate::model::WHOLE;
use crate::workload::TypicalClass;

/// Measures nodes against the typical classes of a workload.
#[derive(Debug, Clone, Default)]
pub struct Fragmentation {
    classes: Vec<TypicalClass>,
}

/// Where the milli of one class fall. Sums are kept apart and added in this order, so that results are the same bit
/// for bit wherever they are computed.
#[derive(Default)]
struct Buckets {
    both: f64,
    card: f64,
    cpu: f64,
    no_card_fits: f64,
    no_card_lacks_cpu: f64,
    model: f64,
}

impl Fragmentation {
    /// Against these classes.
    #[must_use]
    pub fn new(classes: Vec<TypicalClass>) -> Self {
        Self { classes }
    }

    /// The classes.
    #[must_use]
    pub fn classes(&self) -> &[TypicalClass] {
        &self.classes
    }

    /// Expected unusable milli of a node with `cpu` and `cards` left: between 0 and what is left of its cards.
    #[must_use]
    pub fn of(&self, model: u8, cpu: u32, cards: &[u32]) -> f64 {
        let all = f64::from(cards.iter().sum::<u32>());
        let mut sums = Buckets::default();
        for class in &self.classes {
            let cpu_fits = cpu >= class.cpu;
            if class.count == 0 {
                let place = if cpu_fits {
                    &mut sums.no_card_fits
                } else {
                    &mut sums.no_card_lacks_cpu
                };
                *place += class.weight * all;
            } else if !class.models.has(model) {
                sums.model += class.weight * all;
            } else {
                let least = class.milli.min(WHOLE);
                let (mut fitting, mut below) = (0_u32, 0_u32);
                for left in cards {
                    let fits = *left >= least;
                    fitting += u32::from(fits);
                    below += if fits { 0 } else { *left };
                }
                match (fitting >= u32::from(class.count), cpu_fits) {
                    (true, true) => sums.card += class.weight * f64::from(below),
                    (true, false) => sums.cpu += class.weight * all,
                    (false, true) => sums.card += class.weight * all,
                    (false, false) => sums.both += class.weight * all,
                }
            }
        }
        sums.both + sums.card + sums.cpu + sums.no_card_fits + sums.no_card_lacks_cpu + sums.model
    }
}
