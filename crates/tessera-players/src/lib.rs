//! Players: programs that stand in for other makers' device plugins.
//!
//! A player registers its cards with a real kubelet and a real API server exactly as the maker's plugin does, in the
//! maker's own texts, and answers `Allocate` from the annotations that the plugin would read. What one plugin does is
//! data (`data/*.yaml`, read by [`part`]); a few things that data cannot say are in [`quirk`]. A player can also do it
//! wrong on purpose ([`Mischief`]).
//!
//! Nothing here uses the product's own texts: a register that the player writes and the scheduler reads was written
//! down twice, once on each side.

pub mod api;
pub mod cards;
pub mod machine;
pub mod part;
pub mod pick;
pub mod player;
pub mod promise;
mod quirk;
pub mod template;

pub use cards::{CardsError, Mix};
pub use machine::{Card, Machine};
pub use part::{Part, known};
pub use player::{Mischief, Player, Setting};
