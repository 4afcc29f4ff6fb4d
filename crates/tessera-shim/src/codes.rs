//! The vendor's codes that hooks answer with.

/// `CUDA_SUCCESS`, `NVML_SUCCESS`.
pub(crate) const SUCCESS: i32 = 0;
/// `CUDA_ERROR_INVALID_VALUE`.
pub(crate) const INVALID_VALUE: i32 = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: i32 = 2;
/// `CUDA_ERROR_NOT_FOUND`: the driver has no such entry.
pub(crate) const NOT_FOUND: i32 = 500;
/// `CUDA_ERROR_NOT_PERMITTED`.
pub(crate) const NOT_PERMITTED: i32 = 800;
/// `NVML_ERROR_INVALID_ARGUMENT`.
pub(crate) const NVML_INVALID_ARGUMENT: i32 = 2;
/// `NVML_ERROR_NO_PERMISSION`.
pub(crate) const NVML_NO_PERMISSION: i32 = 4;
/// `NVML_ERROR_INSUFFICIENT_SIZE`.
pub(crate) const NVML_INSUFFICIENT_SIZE: i32 = 7;
/// `NVML_ERROR_FUNCTION_NOT_FOUND`: the library has no such entry.
pub(crate) const NVML_FUNCTION_NOT_FOUND: i32 = 13;
