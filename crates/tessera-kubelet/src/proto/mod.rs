//! Generated messages and services. The sources are in `proto/`; the test
//! `codegen` regenerates and compares.

/// Device plugin protocol, `v1beta1`.
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, missing_debug_implementations, clippy::all, clippy::pedantic, reason = "generated code")]
#[allow(clippy::allow_attributes, clippy::str_to_string, reason = "generated code")]
pub mod deviceplugin_v1beta1;

/// PodResources, `v1`.
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, missing_debug_implementations, clippy::all, clippy::pedantic, reason = "generated code")]
#[allow(clippy::allow_attributes, clippy::str_to_string, reason = "generated code")]
pub mod podresources_v1;
