//! `libvgpu.so`: preloaded into every process of a container with a limited card.
//!
//! It stands in for the driver's memory and information calls (and NVML's), however a program reaches them: linked
//! directly, by `dlsym`, `dlvsym`, or `cuGetProcAddress`. Everything that is not in [`table`] goes to the driver
//! untouched; launches too, so they cost nothing, unless the time on a card is shared ([`turns`]).
//!
//! # Rules
//! - What a container may use stands in its grant, a file on a read-only mount. Variables play no part.
//! - Without a readable grant `cuInit` answers 800 (`CUDA_ERROR_NOT_PERMITTED`), NVML's initialisers 4
//!   (`NVML_ERROR_NO_PERMISSION`), and one line on standard error says what to do. Never unlimited by accident.
//! - A request that would pass the limit is answered 2 (`CUDA_ERROR_OUT_OF_MEMORY`), as the driver itself would.
//!   Before that, what dead processes hold is taken back and unused pool memory is trimmed.
//! - A card that is not granted gets no context: 800.
//! - A card granted without limit is forwarded and not counted.
//! - The driver's own need per process (context, modules) is on top of the limit unless the grant says that it counts
//!   ([`CardFlags::COUNT_CONTEXT`](tessera_region::CardFlags::COUNT_CONTEXT)).
//! - Our own trouble never ends the process: an account that is full or cannot be mapped refuses with 2 or 800.
//!
//! # What it is not
//! A wall against a determined tenant: a static binary or a direct ioctl does not pass here. The node agent compares
//! the driver's own figures with the grant.
//!
//! # On the way of a call
//! No allocation, no lock across a driver call, no environment, no formatting. All private state lies in one mapping
//! that the kernel empties in a forked child, so the child begins as a new process.

#![expect(
    unsafe_code,
    reason = "replaces C functions of the driver and talks to the C library"
)]
#![deny(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::todo,
    clippy::unreachable,
    clippy::unwrap_used,
    clippy::expect_used
)]
// A cdylib has no callers in Rust; what is exported is in `table`.
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "exports are C symbols, documented by the vendor"
)]

mod address;
mod argument;
mod codes;
mod elf;
mod gates;
mod information;
mod lookup;
mod memory;
mod message;
mod nvml;
mod os;
mod place;
mod process;
mod swap;
mod symbol;
mod table;
mod turns;
