//! Every class.

mod huawei;
mod iluvatar;
mod nvidia_amd_intel;
mod shared;
mod whole;

use super::table::Row;

/// Every class, in the order of the columns.
pub(crate) const ROWS: &[Row] = &[
    nvidia_amd_intel::NVIDIA,
    huawei::HUAWEI_ASCEND_910B3_TEMPLATES,
    huawei::HUAWEI_ASCEND_910B3_SOFT_SLICES,
    huawei::HUAWEI_ASCEND_910B4,
    huawei::HUAWEI_ASCEND_910B4_1,
    huawei::HUAWEI_ASCEND_910C_TWO_A_MODULE,
    huawei::HUAWEI_ASCEND_310P,
    shared::HYGON_DCU,
    whole::METAX_WHOLE_CARDS,
    shared::METAX_SHARES,
    shared::CAMBRICON,
    shared::MOORE_THREADS,
    iluvatar::ILUVATAR_BI_V150,
    iluvatar::ILUVATAR_BI_V150S,
    iluvatar::ILUVATAR_MR_V100,
    nvidia_amd_intel::INTEL_GPU,
    whole::INTEL_GAUDI,
    nvidia_amd_intel::AMD,
    whole::ENFLAME_WHOLE_CARDS,
    shared::ENFLAME_SLICES,
    whole::KUNLUNXIN_WHOLE_CARDS,
    shared::KUNLUNXIN_VIRTUAL_CARDS,
    whole::AWS_NEURON,
    whole::BIREN,
    whole::VASTAI,
];
