//! A CUDA driver library over a simulated machine.
//!
//! It exports every name of the public driver headers; what is not simulated answers
//! `CUDA_ERROR_NOT_SUPPORTED`. Memory is accounted exactly on the shared machine; the bytes
//! themselves live in this process, in pages that the system provides when they are touched.
//! Kernels compute nothing: they take time. How much, a module's text says (see [`code`]).
//!
//! Copies move real bytes up to [`copy::COPY_MAX`] a call, so that a client reads back what it
//! wrote, and a test that "fills" a card does not fill the host.
//!
//! A module image is a zero-terminated text of lines `kernel NAME [MICROSECONDS [SMS]]`,
//! `global NAME BYTES` and `code BYTES`; PTX is searched for its entries; other images are taken
//! to contain any function that is asked for.
#![allow(unsafe_code, reason = "the whole crate is a C interface")]
#![allow(non_snake_case, reason = "the names are the driver's")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the widths are those of the C interface"
)]
#![allow(clashing_extern_declarations, reason = "the table only needs addresses")]
#![allow(clippy::too_many_arguments, reason = "the signatures are the driver's")]

#[macro_use]
mod abi;

mod arena;
mod array;
mod capture;
mod checkpoint;
mod code;
mod context;
mod copy;
mod device;
mod errors;
mod event;
mod graph;
mod graph_exec;
mod interop;
mod launch;
mod lookup;
mod memory;
mod mps;
mod pool;
mod state;
mod stream;
mod timing;
mod vmm;
