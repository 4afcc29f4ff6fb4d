//! The description of a machine, as a person writes it.
//!
//! ```yaml
//! driver: "580.95.05"
//! cuda: "13.0"
//! cards:
//!   - model: A100-SXM4-40GB
//!     count: 2
//!   - model: T4
//!     memory_mib: 16384
//! links:
//!   - between: [0, 1]
//!     nvlink: 12
//! ```

use serde::Deserialize;

use crate::layout::{CardDesc, MAX_CARDS, MAX_WITHOUT, field};
use crate::presets::{self, Preset};
use crate::uuid::{name_uuid, parse_uuid};

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The text is not a description; the message has line and column.
    #[error("{0}")]
    Text(String),
    /// A value that no machine has.
    #[error("{place}: {problem}")]
    Value {
        /// Where, as a path into the description.
        place: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

fn value(place: impl Into<String>, problem: impl Into<String>) -> ModelError {
    ModelError::Value {
        place: place.into(),
        problem: problem.into(),
    }
}

/// A whole machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// Driver version.
    pub driver: String,
    /// CUDA version of the driver, `major.minor`.
    pub cuda: String,
    /// Name from which identifiers are made; two nodes need two names.
    pub node: String,
    /// Chunk in which the driver takes device memory, in KiB.
    pub granule_kib: u64,
    /// Time of a kernel that does not say how long it takes, in microseconds.
    pub kernel_us: u64,
    /// Launches of one stream that may wait.
    pub in_flight: u64,
    /// Whether the NVLinks of all cards end at switches.
    pub nvswitch: bool,
    /// The cards, in bus order.
    pub cards: Vec<CardSpec>,
    /// Links between cards.
    pub links: Vec<LinkSpec>,
    /// Entry points that the installed libraries shall lack.
    pub without: Vec<String>,
    /// How time passes.
    pub clock: ClockSpec,
    /// Speed of the link between cards and host in GB/s; with 0 copies take no time.
    pub link_gb_s: u64,
    /// Whether a multi-process server runs: its variables then limit its clients.
    pub mps: bool,
    /// Whether the driver holds control groups to memory limits.
    pub memory_limits: LimitsSpec,
}

/// How time passes on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ClockSpec {
    /// As everywhere.
    #[default]
    Wall,
    /// Wall time, faster or slower by a factor.
    Scaled(f64),
    /// By events: time stands while a process computes and jumps when all wait.
    Virtual {
        /// Host time that one launch takes, in nanoseconds.
        #[serde(default = "launch_ns")]
        launch_ns: u64,
    },
}

fn launch_ns() -> u64 {
    5000
}

impl ClockSpec {
    /// Mode and speed in thousandths.
    pub(crate) fn words(self) -> (u32, u64) {
        match self {
            Self::Wall => (0, 1000),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the range was checked"
            )]
            Self::Scaled(factor) => (2, (factor * 1000.0) as u64),
            Self::Virtual { .. } => (3, 1000),
        }
    }

    pub(crate) fn launch_ns(self) -> u64 {
        match self {
            Self::Virtual { launch_ns } => launch_ns,
            _ => 0,
        }
    }
}

/// What the driver says to memory limits of control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitsSpec {
    /// As a driver of this version does: from branch 615 on it has them.
    #[default]
    Auto,
    /// It has them.
    Yes,
    /// The device does not support them.
    NotSupported,
    /// Nobody may set them.
    NoPermission,
    /// The system's part is missing.
    OperatingSystem,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            driver: "580.95.05".into(),
            cuda: "13.0".into(),
            node: "node".into(),
            granule_kib: 2048,
            kernel_us: 50,
            in_flight: 1024,
            nvswitch: false,
            cards: Vec::new(),
            links: Vec::new(),
            without: Vec::new(),
            clock: ClockSpec::Wall,
            link_gb_s: 0,
            mps: false,
            memory_limits: LimitsSpec::Auto,
        }
    }
}

/// Whether partitioning is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigMode {
    /// Off.
    #[default]
    Off,
    /// On, without instances.
    On,
}

/// One card, or several equal ones.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardSpec {
    /// The maker. Only `nvidia` is simulated here; a file may name cards of others, which are left out.
    #[serde(default = "nvidia")]
    pub vendor: String,
    /// A known model, or any name when `memory_mib` and `sms` are given.
    pub model: String,
    /// How many of it; identifiers and addresses may then not be given.
    #[serde(default = "one")]
    pub count: usize,
    /// Identifier, `GPU-` and 36 characters.
    pub uuid: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// All memory.
    pub memory_mib: Option<u64>,
    /// Part that the driver keeps.
    pub reserved_mib: Option<u64>,
    /// What a context takes.
    pub context_mib: Option<u64>,
    /// Streaming multiprocessors.
    pub sms: Option<u32>,
    /// Compute capability, `major.minor`.
    pub capability: Option<String>,
    /// NUMA node.
    pub numa: Option<i32>,
    /// Bus address, `0000:3b:00.0`.
    pub pci: Option<String>,
    /// Number of the device file.
    pub minor: Option<u32>,
    /// Number of NVLinks.
    pub nvlinks: Option<u32>,
    /// Partitioning at the start.
    #[serde(default)]
    pub mig: MigMode,
    /// Instance profiles that the card has, by name, of those of its model; all without it.
    pub mig_profiles: Option<Vec<String>>,
}

fn one() -> usize {
    1
}

/// The maker whose driver this simulates.
const NVIDIA: &str = "nvidia";

fn nvidia() -> String {
    NVIDIA.to_owned()
}

/// How close two cards are without NVLink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Pcie {
    /// On one board.
    Pci,
    /// One bridge.
    Pix,
    /// Several bridges.
    Pxb,
    /// One host bridge.
    Phb,
    /// One NUMA node.
    Node,
    /// Across NUMA nodes.
    Sys,
}

/// A link between two cards.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// The two cards, by position.
    pub between: [usize; 2],
    /// Number of NVLinks.
    pub nvlink: Option<u32>,
    /// PCIe distance.
    pub pcie: Option<Pcie>,
}

/// The description turned into what the shared state holds.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) descs: Vec<CardDesc>,
    pub(crate) topology: [[u8; MAX_CARDS]; MAX_CARDS],
    pub(crate) cuda_version: u32,
}

fn two_numbers(text: &str) -> Option<(u32, u32)> {
    let (a, b) = text.split_once('.')?;
    Some((a.parse().ok()?, b.parse().ok()?))
}

impl MachineSpec {
    /// Reads a description. Cards of other makers are left out, so that one file describes a mixed node; positions
    /// in `links` count the cards that are left.
    ///
    /// # Errors
    /// Text that is no description (with line and column), or values that no machine has.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let mut spec: Self = serde_saphyr::from_str(text).map_err(|e| ModelError::Text(e.to_string()))?;
        spec.cards.retain(|card| card.vendor == NVIDIA);
        spec.build()?;
        Ok(spec)
    }

    /// The machine with `count` cards of one model and defaults.
    #[must_use]
    pub fn of(model: &str, count: usize) -> Self {
        Self {
            cards: vec![CardSpec {
                vendor: nvidia(),
                model: model.into(),
                count,
                uuid: None,
                serial: None,
                memory_mib: None,
                reserved_mib: None,
                context_mib: None,
                sms: None,
                capability: None,
                numa: None,
                pci: None,
                minor: None,
                nvlinks: None,
                mig: MigMode::Off,
                mig_profiles: None,
            }],
            ..Self::default()
        }
    }

    /// Code that a call for memory limits gets; 0 where the driver has them.
    pub(crate) fn limits_answer(&self) -> i32 {
        let branch = self.driver.split('.').next().and_then(|b| b.parse::<u32>().ok());
        match self.memory_limits {
            LimitsSpec::Yes => 0,
            LimitsSpec::Auto if branch.is_some_and(|b| b >= 615) => 0,
            LimitsSpec::Auto | LimitsSpec::NotSupported => 3,
            LimitsSpec::NoPermission => 4,
            LimitsSpec::OperatingSystem => 17,
        }
    }

    pub(crate) fn build(&self) -> Result<Built, ModelError> {
        let (major, minor) = two_numbers(&self.cuda)
            .filter(|(a, b)| (11..100).contains(a) && *b < 10)
            .ok_or_else(|| value("cuda", format!("`{}` is not like `12.8`", self.cuda)))?;
        if self.driver.is_empty() || self.driver.len() > 31 {
            return Err(value("driver", "a version of 1 to 31 characters"));
        }
        if !(4..=65536).contains(&self.granule_kib) || !self.granule_kib.is_power_of_two() {
            return Err(value("granule_kib", "a power of two from 4 to 65536"));
        }
        if self.without.len() > MAX_WITHOUT {
            return Err(value("without", format!("at most {MAX_WITHOUT} names")));
        }
        if self.in_flight == 0 {
            return Err(value("in_flight", "at least 1"));
        }
        if let ClockSpec::Scaled(factor) = self.clock
            && !(0.001..=1000.0).contains(&factor)
        {
            return Err(value("clock", "a factor from 0.001 to 1000"));
        }
        if self.link_gb_s > 10_000 {
            return Err(value("link_gb_s", "from 0 to 10000"));
        }
        let mut descs: Vec<CardDesc> = Vec::new();
        for (at, card) in self.cards.iter().enumerate() {
            if card.count == 0 {
                return Err(value(format!("cards[{at}].count"), "at least 1"));
            }
            if card.count > 1
                && (card.uuid.is_some() || card.pci.is_some() || card.minor.is_some() || card.serial.is_some())
            {
                return Err(value(
                    format!("cards[{at}]"),
                    "`uuid`, `serial`, `pci` and `minor` belong to one card; leave `count` out",
                ));
            }
            for _ in 0..card.count {
                if descs.len() == MAX_CARDS {
                    return Err(value("cards", format!("at most {MAX_CARDS} cards")));
                }
                descs.push(self.card(at, card, descs.len())?);
            }
        }
        if descs.is_empty() {
            return Err(value("cards", "a machine needs at least one card"));
        }
        for (i, a) in descs.iter().enumerate() {
            for b in &descs[..i] {
                if a.uuid == b.uuid || a.minor == b.minor || a.bus_id() == b.bus_id() {
                    return Err(value(
                        "cards",
                        format!("card {i} has the `uuid`, `minor` or `pci` of another card"),
                    ));
                }
            }
        }
        let topology = self.connect(&mut descs)?;
        Ok(Built {
            descs,
            topology,
            cuda_version: major * 1000 + minor * 10,
        })
    }

    fn card(&self, at: usize, spec: &CardSpec, index: usize) -> Result<CardDesc, ModelError> {
        let place = |what: &str| format!("cards[{at}].{what}");
        let known = presets::find(&spec.model);
        let generic = Preset {
            key: "",
            name: "",
            memory_mib: 0,
            reserved_mib: 256,
            context_mib: 300,
            sms: 0,
            capability: (8, 0),
            architecture: 7,
            brand: 14,
            pci_device_id: 0x20ff_10de,
            pci_subsystem_id: 0x0000_10de,
            power_w: 300,
            clock_sm_mhz: 1500,
            clock_memory_mhz: 1500,
            bus_width: 384,
            l2_mib: 6,
            nvlinks: 0,
            mig: &[],
        };
        let base = match known {
            Some(p) => p,
            None if spec.memory_mib.is_some() && spec.sms.is_some() => &generic,
            None => {
                let names: Vec<_> = presets::PRESETS.iter().map(|p| p.key).collect();
                return Err(value(
                    place("model"),
                    format!(
                        "`{}` is not known; give `memory_mib` and `sms`, or one of {}",
                        spec.model,
                        names.join(", ")
                    ),
                ));
            }
        };
        let name = known.map_or(spec.model.as_str(), |p| p.name);
        let memory = spec.memory_mib.unwrap_or(base.memory_mib);
        let reserved = spec.reserved_mib.unwrap_or(base.reserved_mib);
        let context = spec.context_mib.unwrap_or(base.context_mib);
        if memory == 0 || memory > 1 << 22 || reserved >= memory || context > memory {
            return Err(value(
                place("memory_mib"),
                "from 1 to 4194304, above `reserved_mib` and `context_mib`",
            ));
        }
        let uuid = match &spec.uuid {
            Some(text) => parse_uuid(text)
                .ok_or_else(|| value(place("uuid"), format!("`{text}` is not `GPU-` and 36 characters")))?,
            None => name_uuid(&format!("{}/{}/{index}", self.node, spec.model)),
        };
        let capability = match &spec.capability {
            None => base.capability,
            Some(text) => {
                two_numbers(text).ok_or_else(|| value(place("capability"), format!("`{text}` is not like `8.0`")))?
            }
        };
        let number = u32::try_from(index).unwrap_or(0);
        let (pci_domain, pci_bus, pci_device) = match &spec.pci {
            None => (0, 0x07 + number * 8, 0),
            Some(text) => {
                bus(text).ok_or_else(|| value(place("pci"), format!("`{text}` is not like `0000:3b:00.0`")))?
            }
        };
        let (mut profiles, mut profiles_len) = presets::profiles(base.mig);
        if let Some(wanted) = &spec.mig_profiles {
            let all = profiles;
            let count = profiles_len as usize;
            profiles_len = 0;
            for name in wanted {
                let found = all[..count]
                    .iter()
                    .find(|p| p.name() == name)
                    .ok_or_else(|| value(place("mig_profiles"), format!("the model has no `{name}`")))?;
                profiles[profiles_len as usize] = *found;
                profiles_len += 1;
            }
        }
        if spec.mig == MigMode::On && profiles_len == 0 {
            return Err(value(place("mig"), "the model has no partitions"));
        }
        let nvlinks = spec.nvlinks.unwrap_or(base.nvlinks);
        if nvlinks > 18 {
            return Err(value(place("nvlinks"), "at most 18"));
        }
        let mut digits = 0u64;
        for byte in &uuid[..6] {
            digits = digits * 256 + u64::from(*byte);
        }
        Ok(CardDesc {
            uuid,
            name: field(name),
            serial: field(
                &spec
                    .serial
                    .clone()
                    .unwrap_or_else(|| format!("1{:012}", digits % 1_000_000_000_000)),
            ),
            memory_bytes: memory << 20,
            reserved_bytes: reserved << 20,
            context_bytes: context << 20,
            sms: spec.sms.unwrap_or(base.sms).max(1),
            capability_major: capability.0,
            capability_minor: capability.1,
            numa: spec.numa.unwrap_or(0),
            minor: spec.minor.unwrap_or(number),
            pci_domain,
            pci_bus,
            pci_device,
            pci_device_id: base.pci_device_id,
            pci_subsystem_id: base.pci_subsystem_id,
            architecture: base.architecture,
            brand: base.brand,
            power_limit_mw: base.power_w * 1000,
            clock_sm_mhz: base.clock_sm_mhz,
            clock_memory_mhz: base.clock_memory_mhz,
            bus_width: base.bus_width,
            l2_bytes: base.l2_mib << 20,
            links: nvlinks,
            link_peer: [255; 20],
            profiles_len,
            profiles,
            mig_at_start: u32::from(spec.mig == MigMode::On),
            pad: 0,
        })
    }

    fn connect(&self, descs: &mut [CardDesc]) -> Result<[[u8; MAX_CARDS]; MAX_CARDS], ModelError> {
        let mut topology = [[50u8; MAX_CARDS]; MAX_CARDS];
        for (i, row) in topology.iter_mut().enumerate() {
            for (j, cell) in row.iter_mut().enumerate() {
                if i == j {
                    *cell = 0;
                } else if let (Some(a), Some(b)) = (descs.get(i), descs.get(j))
                    && a.numa == b.numa
                {
                    *cell = 40;
                }
            }
        }
        for (at, link) in self.links.iter().enumerate() {
            let [a, b] = link.between;
            if a == b || a >= descs.len() || b >= descs.len() {
                return Err(value(
                    format!("links[{at}].between"),
                    format!("two different cards of 0 to {}", descs.len() - 1),
                ));
            }
            if let Some(pcie) = link.pcie {
                let level = match pcie {
                    Pcie::Pci => 0,
                    Pcie::Pix => 10,
                    Pcie::Pxb => 20,
                    Pcie::Phb => 30,
                    Pcie::Node => 40,
                    Pcie::Sys => 50,
                };
                topology[a][b] = level;
                topology[b][a] = level;
            }
            for _ in 0..link.nvlink.unwrap_or(0) {
                for (from, to) in [(a, b), (b, a)] {
                    let total = descs[from].links as usize;
                    let free = descs[from].link_peer[..total].iter().position(|p| *p == 255);
                    let Some(free) = free else {
                        return Err(value(
                            format!("links[{at}].nvlink"),
                            format!("card {from} has only {total} NVLinks"),
                        ));
                    };
                    descs[from].link_peer[free] = u8::try_from(to).unwrap_or(255);
                }
            }
        }
        if self.nvswitch {
            for desc in descs.iter_mut() {
                let total = desc.links as usize;
                for peer in &mut desc.link_peer[..total] {
                    if *peer == 255 {
                        *peer = 254;
                    }
                }
            }
        }
        Ok(topology)
    }
}

fn bus(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split([':', '.']);
    let mut next = || u32::from_str_radix(parts.next()?, 16).ok();
    let (domain, bus, device) = (next()?, next()?, next()?);
    (bus < 256 && device < 32).then_some((domain, bus, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_stable_and_distinct() {
        let a = MachineSpec::of("T4", 3).build().unwrap();
        let b = MachineSpec::of("Tesla T4", 3).build().unwrap();
        assert_eq!(a.descs[0].name(), "Tesla T4");
        assert_ne!(a.descs[0].uuid, a.descs[1].uuid);
        assert_eq!(a.descs[2].memory_bytes, b.descs[2].memory_bytes);
        assert_eq!(MachineSpec::of("T4", 3).build().unwrap().descs[1].uuid, a.descs[1].uuid);
    }

    #[test]
    fn cards_of_other_makers_are_left_to_others() {
        let text = "cards: [{vendor: ascend, model: 910B3, count: 4}, {vendor: nvidia, model: T4}, {model: T4}]";
        assert_eq!(MachineSpec::parse(text).unwrap().cards.len(), 2);
        let error = MachineSpec::parse("cards: [{vendor: ascend, model: 910B3}]").unwrap_err();
        assert!(error.to_string().contains("at least one card"), "{error}");
    }

    #[test]
    fn a_wrong_key_is_refused_with_its_line() {
        let error = MachineSpec::parse("cards:\n  - model: T4\n    memory: 5\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("memory") && text.contains('3'), "{text}");
    }

    #[test]
    fn values_no_machine_has_are_refused() {
        for text in [
            "cards: []",
            "cards: [{model: Nope}]",
            "cards: [{model: T4, count: 17}]",
            "cards: [{model: T4, mig: on}]",
            "cards: [{model: T4, reserved_mib: 99999}]",
            "{cuda: x, cards: [{model: T4}]}",
            "{cards: [{model: T4, count: 2}], links: [{between: [0, 2]}]}",
            "{cards: [{model: T4, count: 2}], links: [{between: [0, 1], nvlink: 1}]}",
            "{cards: [{model: T4, uuid: GPU-1}]}",
        ] {
            assert!(MachineSpec::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn links_are_counted_on_both_sides() {
        let spec = MachineSpec::parse(
            "{cards: [{model: A100-SXM4-40GB, count: 3}], links: [{between: [0, 1], nvlink: 4, pcie: PIX}]}",
        )
        .unwrap();
        let built = spec.build().unwrap();
        let peers = |i: usize, j: u8| built.descs[i].link_peer.iter().filter(|p| **p == j).count();
        assert_eq!((peers(0, 1), peers(1, 0), peers(2, 0)), (4, 4, 0));
        assert_eq!((built.topology[0][1], built.topology[1][2]), (10, 40));
    }
}
