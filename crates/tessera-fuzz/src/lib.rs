//! What must hold for any bytes that somebody else may have written.
//!
//! Each [`Target`] takes bytes and looks at them as one kind of text or page. None may panic, and what was understood and
//! printed again is understood as the same. `fuzz/` runs them guided by coverage (`cargo xtask fuzz`), the test of this
//! crate with the texts of the conformance cases and changes of them.

pub mod pages;
pub mod seeds;
pub mod texts;

/// One kind of input.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name, also of the program in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
}

/// All targets, in order of their names.
pub const TARGETS: &[Target] = &[
    Target {
        name: "account",
        run: pages::account,
    },
    Target {
        name: "admission",
        run: texts::admission,
    },
    Target {
        name: "cluster",
        run: texts::cluster,
    },
    Target {
        name: "config",
        run: texts::config,
    },
    Target {
        name: "device_text",
        run: texts::device_text,
    },
    Target {
        name: "extender",
        run: texts::extender,
    },
    Target {
        name: "grant",
        run: pages::grant,
    },
    Target {
        name: "marks",
        run: texts::marks,
    },
    Target {
        name: "objects",
        run: texts::objects,
    },
    Target {
        name: "quantity",
        run: texts::quantity,
    },
    Target {
        name: "register",
        run: texts::register,
    },
    Target {
        name: "rules",
        run: texts::rules,
    },
    Target {
        name: "swap",
        run: pages::swap,
    },
    Target {
        name: "turns",
        run: pages::turns,
    },
    Target {
        name: "verdict",
        run: pages::verdict,
    },
];
