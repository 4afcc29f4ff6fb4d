//! Card models with their published figures.

use crate::layout::{MAX_PROFILES, ProfileDesc, field};

/// Figures of one model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preset {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) memory_mib: u64,
    pub(crate) reserved_mib: u64,
    pub(crate) context_mib: u64,
    pub(crate) sms: u32,
    pub(crate) capability: (u32, u32),
    /// Architecture number of the management library: 5 Volta, 6 Turing, 7 Ampere, 8 Ada, 9 Hopper.
    pub(crate) architecture: u32,
    /// Brand number of the management library: 2 Tesla, 14 NVIDIA, 5 GeForce, 16 GeForce RTX.
    pub(crate) brand: u32,
    pub(crate) pci_device_id: u32,
    pub(crate) pci_subsystem_id: u32,
    pub(crate) power_w: u32,
    pub(crate) clock_sm_mhz: u32,
    pub(crate) clock_memory_mhz: u32,
    pub(crate) bus_width: u32,
    pub(crate) l2_mib: u32,
    pub(crate) nvlinks: u32,
    /// (name, memory in MiB, SMs) of 1, 1 with media, 1 with double memory, 2, 3, 4, 7 slices.
    pub(crate) mig: &'static [(&'static str, u64, u32)],
}

const A100_40: &[(&str, u64, u32)] = &[
    ("1g.5gb", 4864, 14),
    ("1g.5gb+me", 4864, 14),
    ("1g.10gb", 9856, 14),
    ("2g.10gb", 9984, 28),
    ("3g.20gb", 20096, 42),
    ("4g.20gb", 20096, 56),
    ("7g.40gb", 40389, 98),
];
const A100_80: &[(&str, u64, u32)] = &[
    ("1g.10gb", 9728, 14),
    ("1g.10gb+me", 9728, 14),
    ("1g.20gb", 19968, 14),
    ("2g.20gb", 19968, 28),
    ("3g.40gb", 40448, 42),
    ("4g.40gb", 40448, 56),
    ("7g.80gb", 81037, 98),
];
const H100_80: &[(&str, u64, u32)] = &[
    ("1g.10gb", 9984, 16),
    ("1g.10gb+me", 9984, 16),
    ("1g.20gb", 20096, 26),
    ("2g.20gb", 20096, 32),
    ("3g.40gb", 40448, 60),
    ("4g.40gb", 40448, 64),
    ("7g.80gb", 81079, 132),
];
const H200: &[(&str, u64, u32)] = &[
    ("1g.18gb", 16384, 16),
    ("1g.18gb+me", 16384, 16),
    ("1g.35gb", 33280, 26),
    ("2g.35gb", 33280, 32),
    ("3g.71gb", 71168, 60),
    ("4g.71gb", 71168, 64),
    ("7g.141gb", 143167, 132),
];

/// Every model that a description may name.
pub(crate) const PRESETS: &[Preset] = &[
    Preset {
        key: "A100-SXM4-40GB",
        name: "NVIDIA A100-SXM4-40GB",
        memory_mib: 40960,
        reserved_mib: 571,
        context_mib: 412,
        sms: 108,
        capability: (8, 0),
        architecture: 7,
        brand: 14,
        pci_device_id: 0x20b0_10de,
        pci_subsystem_id: 0x144e_10de,
        power_w: 400,
        clock_sm_mhz: 1410,
        clock_memory_mhz: 1215,
        bus_width: 5120,
        l2_mib: 40,
        nvlinks: 12,
        mig: A100_40,
    },
    Preset {
        key: "A100-SXM4-80GB",
        name: "NVIDIA A100-SXM4-80GB",
        memory_mib: 81920,
        reserved_mib: 883,
        context_mib: 412,
        sms: 108,
        capability: (8, 0),
        architecture: 7,
        brand: 14,
        pci_device_id: 0x20b2_10de,
        pci_subsystem_id: 0x1463_10de,
        power_w: 400,
        clock_sm_mhz: 1410,
        clock_memory_mhz: 1593,
        bus_width: 5120,
        l2_mib: 40,
        nvlinks: 12,
        mig: A100_80,
    },
    Preset {
        key: "H100-SXM5-80GB",
        name: "NVIDIA H100 80GB HBM3",
        memory_mib: 81559,
        reserved_mib: 480,
        context_mib: 524,
        sms: 132,
        capability: (9, 0),
        architecture: 9,
        brand: 14,
        pci_device_id: 0x2330_10de,
        pci_subsystem_id: 0x16c1_10de,
        power_w: 700,
        clock_sm_mhz: 1980,
        clock_memory_mhz: 2619,
        bus_width: 5120,
        l2_mib: 50,
        nvlinks: 18,
        mig: H100_80,
    },
    Preset {
        key: "H200",
        name: "NVIDIA H200",
        memory_mib: 143771,
        reserved_mib: 604,
        context_mib: 524,
        sms: 132,
        capability: (9, 0),
        architecture: 9,
        brand: 14,
        pci_device_id: 0x2335_10de,
        pci_subsystem_id: 0x18be_10de,
        power_w: 700,
        clock_sm_mhz: 1980,
        clock_memory_mhz: 3201,
        bus_width: 6144,
        l2_mib: 50,
        nvlinks: 18,
        mig: H200,
    },
    Preset {
        key: "V100-PCIE-32GB",
        name: "Tesla V100-PCIE-32GB",
        memory_mib: 32768,
        reserved_mib: 258,
        context_mib: 304,
        sms: 80,
        capability: (7, 0),
        architecture: 5,
        brand: 2,
        pci_device_id: 0x1db6_10de,
        pci_subsystem_id: 0x124a_10de,
        power_w: 250,
        clock_sm_mhz: 1380,
        clock_memory_mhz: 877,
        bus_width: 4096,
        l2_mib: 6,
        nvlinks: 0,
        mig: &[],
    },
    Preset {
        key: "L40S",
        name: "NVIDIA L40S",
        memory_mib: 46068,
        reserved_mib: 552,
        context_mib: 412,
        sms: 142,
        capability: (8, 9),
        architecture: 8,
        brand: 14,
        pci_device_id: 0x26b9_10de,
        pci_subsystem_id: 0x1851_10de,
        power_w: 350,
        clock_sm_mhz: 2520,
        clock_memory_mhz: 9001,
        bus_width: 384,
        l2_mib: 96,
        nvlinks: 0,
        mig: &[],
    },
    Preset {
        key: "T4",
        name: "Tesla T4",
        memory_mib: 15360,
        reserved_mib: 447,
        context_mib: 104,
        sms: 40,
        capability: (7, 5),
        architecture: 6,
        brand: 2,
        pci_device_id: 0x1eb8_10de,
        pci_subsystem_id: 0x12a2_10de,
        power_w: 70,
        clock_sm_mhz: 1590,
        clock_memory_mhz: 5001,
        bus_width: 256,
        l2_mib: 4,
        nvlinks: 0,
        mig: &[],
    },
    Preset {
        key: "RTX-4090",
        name: "NVIDIA GeForce RTX 4090",
        memory_mib: 24564,
        reserved_mib: 347,
        context_mib: 390,
        sms: 128,
        capability: (8, 9),
        architecture: 8,
        brand: 16,
        pci_device_id: 0x2684_10de,
        pci_subsystem_id: 0x167c_10de,
        power_w: 450,
        clock_sm_mhz: 3120,
        clock_memory_mhz: 10501,
        bus_width: 384,
        l2_mib: 72,
        nvlinks: 0,
        mig: &[],
    },
];

/// The model of a key or product name, whatever the case and the separators.
pub(crate) fn find(model: &str) -> Option<&'static Preset> {
    let plain = |t: &str| -> String {
        t.chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .collect()
    };
    let wanted = plain(model);
    PRESETS
        .iter()
        .find(|p| plain(p.key) == wanted || plain(p.name) == wanted)
}

/// Shape of the seven profiles of a data-centre card: number, id, slices, memory slices,
/// starts, count, copy engines, decoders, media.
const SHAPES: [[u32; 9]; 7] = [
    [0, 19, 1, 1, 0b0111_1111, 7, 1, 0, 0],
    [7, 20, 1, 1, 0b0111_1111, 1, 1, 1, 1],
    [9, 15, 1, 2, 0b0101_0101, 4, 1, 1, 0],
    [1, 14, 2, 2, 0b0001_0101, 3, 2, 1, 0],
    [2, 9, 3, 4, 0b0001_0001, 2, 3, 2, 0],
    [3, 5, 4, 4, 0b0000_0001, 1, 4, 2, 0],
    [4, 0, 7, 8, 0b0000_0001, 1, 7, 5, 1],
];

/// Profiles of a model with the number in use.
pub(crate) fn profiles(mig: &[(&str, u64, u32)]) -> ([ProfileDesc; MAX_PROFILES], u32) {
    let mut out = [ProfileDesc {
        name: [0; 24],
        number: 0,
        id: 0,
        slices: 0,
        size: 0,
        starts: 0,
        count: 0,
        memory_mib: 0,
        sms: 0,
        copy_engines: 0,
        decoders: 0,
        media: 0,
    }; MAX_PROFILES];
    let mut len = 0;
    for ((name, memory_mib, sms), shape) in mig.iter().zip(SHAPES) {
        let [number, id, slices, size, starts, count, copy_engines, decoders, media] = shape;
        out[len] = ProfileDesc {
            name: field(name),
            number,
            id,
            slices,
            size,
            starts,
            count,
            memory_mib: *memory_mib,
            sms: *sms,
            copy_engines,
            decoders,
            media,
        };
        len += 1;
    }
    (out, u32::try_from(len).unwrap_or(0))
}
