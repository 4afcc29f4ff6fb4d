//! How well two cards are linked, in the scale of HAMi's scheduler: a class for
//! the way over PCIe plus 100 for each NVLink between the two.

use std::collections::BTreeMap;

/// The nearest thing that two cards share, in the driver's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestor {
    /// On one board.
    Board,
    /// Below one PCIe switch.
    SingleSwitch,
    /// Below several PCIe switches.
    MultipleSwitches,
    /// Below one host bridge.
    HostBridge,
    /// On one CPU.
    Cpu,
    /// Across CPUs.
    System,
}

impl Ancestor {
    /// Reads the driver's number.
    #[must_use]
    pub fn from_driver(level: u32) -> Option<Self> {
        Some(match level {
            0 => Self::Board,
            10 => Self::SingleSwitch,
            20 => Self::MultipleSwitches,
            30 => Self::HostBridge,
            40 => Self::Cpu,
            50 => Self::System,
            _ => return None,
        })
    }

    /// The score of the way over PCIe.
    #[must_use]
    pub fn score(self) -> u32 {
        match self {
            Self::System => 10,
            Self::Cpu => 20,
            Self::HostBridge => 30,
            Self::MultipleSwitches => 40,
            Self::SingleSwitch => 50,
            Self::Board => 60,
        }
    }
}

/// The active NVLinks of one card, by what is at the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// Links to another card, counted by that card's PCI id.
    pub direct: BTreeMap<String, u32>,
    /// Links into a switch.
    pub switch: u32,
}

impl Links {
    fn toward(&self, other_pci: &str, other_switch: u32) -> u32 {
        self.direct.get(other_pci).copied().unwrap_or(0) + self.switch.min(other_switch)
    }
}

/// One card as the score needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Card UUID.
    pub uuid: String,
    /// PCI id in the form in which links name their other end.
    pub pci: String,
    /// Links.
    pub links: Links,
}

/// Score of each card towards each other card, by UUID.
pub type PairScores = BTreeMap<String, BTreeMap<String, u32>>;

/// Scores of all pairs. `ancestor(a, b)` gives what two cards share; a pair
/// without an answer, or whose two ends report a different number of links,
/// scores 0.
#[must_use]
pub fn scores(nodes: &[Node], mut ancestor: impl FnMut(usize, usize) -> Option<Ancestor>) -> PairScores {
    let mut out = PairScores::new();
    for (i, from) in nodes.iter().enumerate() {
        let row = out.entry(from.uuid.clone()).or_default();
        for (j, to) in nodes.iter().enumerate() {
            if i == j {
                continue;
            }
            let there = from.links.toward(&to.pci, to.links.switch);
            let back = to.links.toward(&from.pci, from.links.switch);
            let score = match ancestor(i, j) {
                Some(class) if there == back => class.score() + 100 * there,
                _ => 0,
            };
            row.insert(to.uuid.clone(), score);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(uuid: &str, direct: &[(&str, u32)], switch: u32) -> Node {
        Node {
            uuid: uuid.into(),
            pci: uuid.to_lowercase(),
            links: Links {
                direct: direct.iter().map(|(pci, count)| ((*pci).to_owned(), *count)).collect(),
                switch,
            },
        }
    }

    #[test]
    fn direct_links_add_to_the_pcie_class() {
        let nodes = [node("A", &[("b", 2)], 0), node("B", &[("a", 2)], 0), node("C", &[], 0)];
        let scores = scores(&nodes, |i, j| {
            Some(if i + j == 1 {
                Ancestor::SingleSwitch
            } else {
                Ancestor::System
            })
        });
        assert_eq!(scores["A"]["B"], 250);
        assert_eq!(scores["B"]["A"], 250);
        assert_eq!(scores["A"]["C"], 10);
        assert!(!scores["A"].contains_key("A"));
    }

    #[test]
    fn a_switch_gives_the_smaller_number_of_links() {
        let nodes = [node("A", &[], 12), node("B", &[], 18)];
        assert_eq!(scores(&nodes, |_, _| Some(Ancestor::Cpu))["A"]["B"], 1220);
    }

    #[test]
    fn a_pair_whose_ends_disagree_scores_nothing() {
        let nodes = [node("A", &[("b", 2)], 0), node("B", &[("a", 1)], 0)];
        assert_eq!(scores(&nodes, |_, _| Some(Ancestor::Cpu))["A"]["B"], 0);
        let nodes = [node("A", &[], 0), node("B", &[], 0)];
        assert_eq!(scores(&nodes, |_, _| None)["A"]["B"], 0);
    }
}
