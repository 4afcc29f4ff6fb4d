//! A management library (NVML) over a simulated machine.
//!
//! It exports every name of the public header; what is not simulated answers
//! `NVML_ERROR_NOT_SUPPORTED`. It sees the cards whose device files the process may open, and
//! the same memory and processes as the simulated CUDA driver. It keeps no session open: a
//! process that only watches takes no part in the machine.
#![allow(unsafe_code, reason = "the whole crate is a C interface")]
#![allow(non_snake_case, reason = "the names are the library's")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the widths are those of the C interface"
)]
#![allow(clippy::too_many_arguments, reason = "the signatures are the library's")]

#[macro_use]
mod abi;

mod device;
mod events;
mod links;
mod memory;
mod partition;
mod process;
mod sensors;
mod state;
mod system;
