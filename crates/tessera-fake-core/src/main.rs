//! `tessera-simdriver`: makes, shows, breaks and removes a simulated machine.
#![allow(clippy::print_stdout, reason = "a command answers on standard output")]

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use tessera_fake_core::{Fault, Machine, Odd, Pool, format_uuid, install, mig};

#[derive(Parser, Debug)]
#[command(version, about = "Makes, shows, breaks and removes a simulated machine")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a driver root from a description of a machine
    Install {
        /// Description of the machine (YAML)
        #[arg(long)]
        cards: PathBuf,
        /// Folder to make
        #[arg(long)]
        root: PathBuf,
        /// Folder of the built libraries; by default the folder of this program
        #[arg(long)]
        lib_dir: Option<PathBuf>,
        /// Make device files only
        #[arg(long, conflicts_with = "lib_dir")]
        no_libraries: bool,
        /// Replace the root although processes use it
        #[arg(long)]
        force: bool,
    },
    /// Show cards, processes and faults
    Status {
        /// Driver root
        #[arg(long)]
        root: PathBuf,
    },
    /// Break something
    Fault {
        /// Driver root
        #[arg(long)]
        root: PathBuf,
        #[command(subcommand)]
        what: FaultCommand,
    },
    /// End all faults
    Reset {
        /// Driver root
        #[arg(long)]
        root: PathBuf,
    },
    /// Remove a driver root
    Uninstall {
        /// Driver root
        #[arg(long)]
        root: PathBuf,
        /// Remove it although processes use it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Subcommand, Debug)]
enum FaultCommand {
    /// Raise an XID event on a card; 79 also takes it off the bus
    Xid {
        /// Card index
        card: usize,
        /// XID number
        xid: u32,
    },
    /// Take a card off the bus without an event
    Lost {
        /// Card index
        card: usize,
    },
    /// Make calls of an entry point fail or wait
    Call {
        /// Entry point, as exported (for example `cuMemAlloc_v2`)
        name: String,
        /// Return code; 0 only delays
        #[arg(long, default_value_t = 999, allow_negative_numbers = true)]
        code: i32,
        /// First call that is struck, counted from now over all processes
        #[arg(long, default_value_t = 1)]
        nth: u64,
        /// How many calls are struck
        #[arg(long, default_value_t = 1)]
        times: u64,
        /// Delay in microseconds
        #[arg(long, default_value_t = 0)]
        delay_us: u64,
    },
    /// Make the management library odd: `zero-pid`, `reused-pid`, `time-back`
    Odd {
        /// What it does, several in one call
        #[arg(required = true, value_parser = ["zero-pid", "reused-pid", "time-back"])]
        what: Vec<String>,
    },
    /// Make every management call fail
    Nvml {
        /// Return code; 9 is "driver not loaded"
        #[arg(long, default_value_t = 9)]
        code: i32,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Install {
            cards,
            root,
            lib_dir,
            no_libraries,
            force,
        } => {
            let text = std::fs::read_to_string(&cards).with_context(|| format!("reading {}", cards.display()))?;
            let own = std::env::current_exe().context("finding this program")?;
            let folder = lib_dir.or_else(|| own.parent().map(PathBuf::from));
            let folder = folder.filter(|_| !no_libraries);
            install::install(&text, &root, folder.as_deref(), force)
                .with_context(|| format!("installing {}", cards.display()))?;
            let machine = Machine::at(&root)?;
            println!("{}: {} cards", root.display(), machine.cards());
        }
        Command::Status { root } => {
            let machine = Machine::at(&root)?;
            status(&machine);
            flaws(&machine);
        }
        Command::Fault { root, what } => fault(&Machine::at(&root)?, what)?,
        Command::Reset { root } => Machine::at(&root)?.reset_faults(),
        Command::Uninstall { root, force } => install::uninstall(&root, force)?,
    }
    Ok(())
}

fn status(machine: &Machine) {
    println!(
        "driver {}  cuda {}.{}",
        machine.driver_version(),
        machine.cuda_version() / 1000,
        machine.cuda_version() % 1000 / 10
    );
    for card in 0..machine.cards() {
        let desc = machine.card(card);
        let mut used = machine.used_bytes(Pool::whole(card));
        for inst in mig::instances(machine, card) {
            used += machine.used_bytes(Pool {
                card,
                instance: Some(inst.position),
            });
        }
        let lost = machine.card_state(card).lost.load(std::sync::atomic::Ordering::SeqCst);
        println!(
            "{card}  {}  {}  {}  {} of {} MiB  {} %{}{}",
            desc.name(),
            format_uuid("GPU-", &desc.uuid),
            desc.bus_id(),
            used >> 20,
            desc.usable_bytes() >> 20,
            machine.card_percent(card),
            if mig::is_on(machine, card) { "  MIG" } else { "" },
            if lost == 1 { "  LOST" } else { "" },
        );
        for inst in mig::instances(machine, card) {
            println!("   instance {}  {}  at {}", inst.id, inst.profile.name(), inst.start);
        }
        for process in machine.processes(card) {
            println!(
                "   pid {}  {} MiB  {} launches",
                process.pid,
                process.bytes >> 20,
                process.launches
            );
        }
    }
}

fn flaws(machine: &Machine) {
    for (flaw, count) in machine.flaws() {
        println!("BROKEN RULE  {}: {count} times", flaw.text());
    }
}

fn fault(machine: &Machine, what: FaultCommand) -> anyhow::Result<()> {
    let check = |card: usize| {
        if card < machine.cards() {
            return Ok(());
        }
        bail!("the machine has cards 0 to {}", machine.cards() - 1)
    };
    match what {
        FaultCommand::Xid { card, xid } => {
            check(card)?;
            if xid == 79 {
                machine.set_lost(card, true);
            }
            machine.raise(card, 8, xid);
        }
        FaultCommand::Lost { card } => {
            check(card)?;
            machine.set_lost(card, true);
        }
        FaultCommand::Call {
            name,
            code,
            nth,
            times,
            delay_us,
        } => machine.add_fault(&Fault {
            name,
            nth,
            times,
            code,
            delay_us,
        })?,
        FaultCommand::Odd { what } => machine.set_odd(what.iter().fold(Odd::default(), |odd, word| {
            Odd(odd.0
                | match word.as_str() {
                    "zero-pid" => Odd::ZERO_PID.0,
                    "reused-pid" => Odd::REUSED_PID.0,
                    _ => Odd::TIME_BACK.0,
                })
        })),
        FaultCommand::Nvml { code } => machine.set_nvml_fault(code),
    }
    Ok(())
}
