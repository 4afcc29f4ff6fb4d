//! Names of every class by default, to tell a class that is not switched on from a name that means nothing here.

use std::collections::BTreeMap;

use tessera_engine::Vendors;

/// Section of the configuration, and HAMi's names of its resources.
const NAMES: &[(&str, &[&str])] = &[
    (
        "nvidia",
        &[
            "nvidia.com/gpu",
            "nvidia.com/gpumem",
            "nvidia.com/gpumem-percentage",
            "nvidia.com/gpucores",
            "nvidia.com/priority",
        ],
    ),
    ("amd", &["amd.com/gpu", "amd.com/gpumem", "amd.com/gpucores"]),
    ("awsneuron", &["aws.amazon.com/neuron", "aws.amazon.com/neuroncore"]),
    ("biren", &["birentech.com/gpu"]),
    (
        "cambricon",
        &[
            "cambricon.com/vmlu",
            "cambricon.com/mlu.smlu.vmemory",
            "cambricon.com/mlu.smlu.vcore",
        ],
    ),
    (
        "enflame",
        &[
            "enflame.com/gcu",
            "enflame.com/drs-gcu",
            "enflame.com/gcu-memory",
            "enflame.com/gcu-core",
        ],
    ),
    ("gaudi", &["habana.ai/gaudi"]),
    ("hygon", &["hygon.com/dcunum", "hygon.com/dcumem", "hygon.com/dcucores"]),
    (
        "intel",
        &[
            "intel.com/gpu",
            "intel.com/gpumem",
            "intel.com/gpumem-percentage",
            "intel.com/gpucores",
        ],
    ),
    (
        "kunlun",
        &["kunlunxin.com/xpu", "kunlunxin.com/vxpu", "kunlunxin.com/vxpu-memory"],
    ),
    (
        "metax",
        &[
            "metax-tech.com/gpu",
            "metax-tech.com/sgpu",
            "metax-tech.com/vmemory",
            "metax-tech.com/vcore",
        ],
    ),
    (
        "mthreads",
        &[
            "mthreads.com/vgpu",
            "mthreads.com/sgpu-memory",
            "mthreads.com/sgpu-core",
        ],
    ),
    ("vastai", &["vastaitech.com/va"]),
];

const ASCEND: &[&str] = &[
    "Ascend910A",
    "Ascend910B2",
    "Ascend910B3",
    "Ascend910B4",
    "Ascend910B4-1",
    "Ascend910C",
    "Ascend310P",
];

const ILUVATAR: &[&str] = &["MR-V100", "MR-V50", "BI-V150", "BI-V100"];

/// The resources that a class would serve if it were switched on, each with the section of the configuration that
/// switches it on. What `vendors` serve, under whichever name, is left out.
#[must_use]
pub fn not_enabled(vendors: &Vendors) -> BTreeMap<String, String> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for (section, names) in NAMES {
        known.extend(names.iter().map(|name| ((*name).to_owned(), (*section).to_owned())));
    }
    for chip in ASCEND {
        known.extend(["", "-memory", "-core"].map(|part| (format!("huawei.com/{chip}{part}"), "vnpus".to_owned())));
    }
    for chip in ILUVATAR {
        let parts = ["-vgpu", ".vMem", ".vCore"];
        known.extend(parts.map(|part| (format!("iluvatar.ai/{chip}{part}"), "iluvatars".to_owned())));
    }
    known.retain(|name, _| !vendors.manages(name));
    known
}
