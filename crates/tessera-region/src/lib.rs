//! Memory shared between the processes of one container and the node agent.
//!
//! Three pages carry what every container needs, and nobody ever waits for another process:
//!
//! | page | written by | content |
//! | --- | --- | --- |
//! | [`Grant`] | agent | what the container may use; read-only inside it |
//! | [`Verdict`] | agent | words that change while the container runs; read-only inside it |
//! | [`Account`] | the container's processes | who holds how much of which card |
//!
//! Two more carry what only some containers need: [`TurnReports`] says what is under way on a card whose time is shared,
//! [`SwapOrders`] and [`SwapReports`] move memory out of a card and back.
//!
//! The crate is pure: it opens no file (but for the helpers of the feature `fs`), reads no clock and asks the
//! operating system nothing. Whether a process is alive comes in as a closure.
//!
//! Every word of a page that a tenant can write may hold anything. The functions here clamp and range-check what they
//! read, so a damaged page gives wrong figures to the container that damaged it and to nobody else.

#![cfg_attr(not(any(feature = "fs", test, loom)), no_std)]
#![deny(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::todo,
    clippy::unreachable,
    clippy::expect_used
)]

mod account;
mod crc;
mod grant;
mod owner;
#[cfg(not(loom))]
mod ring;
#[cfg(not(loom))]
mod swap;
mod sync;
#[cfg(not(loom))]
mod turns;
mod verdict;

#[cfg(feature = "fs")]
pub mod fs;
#[cfg(all(feature = "fs", not(loom)))]
pub mod resize;
#[cfg(all(feature = "fs", not(loom)))]
pub mod ring_host;
#[cfg(all(feature = "fs", not(loom)))]
pub mod swap_host;
#[cfg(all(feature = "fs", not(loom)))]
pub mod turns_host;

pub use account::{
    ACCOUNT_MAGIC, ACCOUNT_SIZE, ACCOUNT_VERSION, Account, AccountError, MAX_SLOTS, Reaped, Refused, SlotIndex,
};
pub use crc::crc32;
pub use grant::{
    CardFlags, CardGrant, GRANT_MAGIC, GRANT_SIZE, GRANT_VERSION, Grant, GrantError, GrantId, GrantState, Text,
};
pub use owner::Owner;
#[cfg(not(loom))]
pub use ring::{RING_FILE, RING_LOOK_SIZE, RING_MOST_NS, RING_PLACES, RING_SIZE, RingLook, RingPage, ring_bit};
#[cfg(not(loom))]
pub use swap::{
    Order, SWAP_ORDER_FILE, SWAP_ORDER_MAGIC, SWAP_ORDER_SIZE, SWAP_REPORT_FILE, SWAP_REPORT_MAGIC, SWAP_REPORT_SIZE,
    SWAP_VERSION, SwapFigures, SwapOrders, SwapReports, SwapRow,
};
#[cfg(not(loom))]
pub use turns::{
    LANES, Lane, MARK_NS, TURNS_FILE, TURNS_MAGIC, TURNS_SIZE, TURNS_VERSION, TurnFigures, TurnReports, TurnRow,
};
pub use verdict::{
    GATE_BRIEF, GATE_CLOSED, GATE_RING, MOST_NS, SILENCE_NS, VERDICT_MAGIC, VERDICT_SIZE, VERDICT_VERSION, Verdict,
    VerdictCard,
};

/// Most cards (or instances) that one grant can name.
#[cfg(not(loom))]
pub const MAX_CARDS: usize = 32;
/// Under the model checker one card is enough.
#[cfg(loom)]
pub const MAX_CARDS: usize = 1;

/// Folder on the host that holds one folder per grant.
pub const HOST_GRANTS_ROOT: &str = "/run/tessera/grants";
/// Folder inside the container that holds [`GRANT_FILE`] and [`VERDICT_FILE`], mounted read-only.
pub const CONTAINER_GRANT_DIR: &str = "/run/tessera/grant";
/// Folder inside the container that holds [`ACCOUNT_FILE`], mounted read-write.
pub const CONTAINER_ACCOUNT_DIR: &str = "/run/tessera/account";
/// Sub-folder of a grant on the host that is mounted at [`CONTAINER_GRANT_DIR`].
pub const READ_ONLY_DIR: &str = "ro";
/// Sub-folder of a grant on the host that is mounted at [`CONTAINER_ACCOUNT_DIR`].
pub const READ_WRITE_DIR: &str = "rw";
/// Name of the grant file.
pub const GRANT_FILE: &str = "grant";
/// Name of the verdict file.
pub const VERDICT_FILE: &str = "verdict";
/// Name of the account file.
pub const ACCOUNT_FILE: &str = "account";
/// Where the preloaded library lies, on the host and in the container alike.
pub const LIBRARY_PATH: &str = "/usr/local/vgpu/libvgpu.so";
/// The file that makes the dynamic loader preload [`LIBRARY_PATH`].
pub const PRELOAD_PATH: &str = "/etc/ld.so.preload";
