//! What the library knows in this process, and what its handles mean.
//!
//! A handle is a number that says what it is, so it stays right across shutdown and init, as
//! with the real library, and an old one of a partition is found out when it is used.

use std::ffi::c_int;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard};

use tessera_fake_core::mig::{self, Compute, Instance};
use tessera_fake_core::{CardDesc, Machine, Pool, format_uuid};

use crate::abi::{DRIVER_NOT_LOADED, GPU_IS_LOST, INVALID_ARGUMENT, NOT_FOUND, R, Res, UNINITIALIZED};

const CARD: u64 = 0x4e43;
const PARTITION: u64 = 0x4e50;
const GPU_INSTANCE: u64 = 0x4e47;
const COMPUTE_INSTANCE: u64 = 0x4e49;

struct Session {
    machine: Option<&'static Machine>,
    count: u32,
    cards: Vec<usize>,
}

static SESSION: Mutex<Session> = Mutex::new(Session {
    machine: None,
    count: 0,
    cards: Vec::new(),
});

fn session() -> MutexGuard<'static, Session> {
    SESSION.lock().unwrap_or_else(|e| e.into_inner())
}

/// Begins a session; sessions are counted.
pub(crate) fn init() -> R {
    let mut session = session();
    if session.machine.is_none() {
        session.machine = Machine::open().ok().map(|m| &*Box::leak(Box::new(m)));
    }
    let machine = session.machine.ok_or(DRIVER_NOT_LOADED)?;
    if session.count == 0 {
        session.cards = machine.visible_cards();
    }
    session.count += 1;
    Ok(())
}

/// Ends a session.
pub(crate) fn shutdown() -> R {
    let mut session = session();
    session.count = session.count.checked_sub(1).ok_or(UNINITIALIZED)?;
    Ok(())
}

/// The machine of the session.
pub(crate) fn machine() -> Res<&'static Machine> {
    let session = session();
    session.machine.filter(|_| session.count > 0).ok_or(UNINITIALIZED)
}

/// Visible cards, in the order of their indexes.
pub(crate) fn cards() -> Res<Vec<usize>> {
    machine()?;
    Ok(session().cards.clone())
}

/// The code that an injected fault gives this call.
pub(crate) fn struck(name: &str) -> Option<c_int> {
    // A fault may concern the very first call, so the machine is opened here if need be.
    let mut session = session();
    if session.machine.is_none() {
        session.machine = Machine::open().ok().map(|m| &*Box::leak(Box::new(m)));
    }
    let machine = session.machine?;
    drop(session);
    let fault = machine.nvml_fault();
    if fault != 0 {
        return Some(fault);
    }
    machine.struck(name)
}

/// What a device handle names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) machine: &'static Machine,
    pub(crate) card: usize,
    pub(crate) part: Option<(Instance<'static>, Compute)>,
}

impl Device {
    /// Reads a device handle.
    pub(crate) fn of(handle: u64) -> Res<Self> {
        let machine = machine()?;
        let card = (handle >> 16 & 0xff) as usize;
        if !session().cards.contains(&card) {
            return Err(INVALID_ARGUMENT);
        }
        let part = match handle >> 32 {
            CARD => None,
            PARTITION => {
                let (instance, compute) = (handle >> 8 & 0xff, handle & 0xff);
                let found = mig::devices(machine, card)
                    .into_iter()
                    .find(|(i, c)| i.position as u64 == instance && u64::from(c.id) == compute);
                Some(found.ok_or(INVALID_ARGUMENT)?)
            }
            _ => return Err(INVALID_ARGUMENT),
        };
        if machine.card_state(card).lost.load(SeqCst) == 1 {
            return Err(GPU_IS_LOST);
        }
        Ok(Self { machine, card, part })
    }

    /// Reads a handle that must name a whole card.
    pub(crate) fn whole(handle: u64) -> Res<Self> {
        let device = Self::of(handle)?;
        if device.part.is_some() {
            return Err(INVALID_ARGUMENT);
        }
        Ok(device)
    }

    pub(crate) fn desc(&self) -> &'static CardDesc {
        self.machine.card(self.card)
    }

    /// The memory pool that it shows.
    pub(crate) fn pool(&self) -> Pool {
        Pool {
            card: self.card,
            instance: self.part.map(|(i, _)| i.position),
        }
    }

    pub(crate) fn uuid(&self) -> String {
        match self.part {
            None => format_uuid("GPU-", &self.desc().uuid),
            Some((i, c)) => format_uuid("MIG-", &mig::device_uuid(self.machine, self.card, i.id, c.id)),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self.part {
            None => self.desc().name().to_owned(),
            Some((i, _)) => format!("{} MIG {}", self.desc().name(), i.profile.name()),
        }
    }

    /// Whether the card is partitioned, so that it gives no figures of its own.
    pub(crate) fn partitioned(&self) -> bool {
        self.part.is_some() || mig::is_on(self.machine, self.card)
    }
}

fn handle(kind: u64, card: usize, a: u64, b: u64) -> u64 {
    kind << 32 | (card as u64) << 16 | a << 8 | b
}

/// Handle of a card.
pub(crate) fn card_handle(card: usize) -> u64 {
    handle(CARD, card, 0, 0)
}

/// Handle of a partition.
pub(crate) fn part_handle(card: usize, instance: usize, compute: u32) -> u64 {
    handle(PARTITION, card, instance as u64, u64::from(compute))
}

/// Handle of a GPU instance.
pub(crate) fn instance_handle(card: usize, position: usize) -> u64 {
    handle(GPU_INSTANCE, card, position as u64, 0)
}

/// Handle of a compute instance.
pub(crate) fn compute_handle(card: usize, position: usize, id: u32) -> u64 {
    handle(COMPUTE_INSTANCE, card, position as u64, u64::from(id))
}

/// The GPU instance of a handle.
pub(crate) fn instance_of(handle: u64) -> Res<(Device, Instance<'static>)> {
    if handle >> 32 != GPU_INSTANCE {
        return Err(INVALID_ARGUMENT);
    }
    let device = Device::whole(card_handle((handle >> 16 & 0xff) as usize))?;
    let instance = mig::instance(device.machine, device.card, (handle >> 8 & 0xff) as usize).ok_or(NOT_FOUND)?;
    Ok((device, instance))
}

/// The compute instance of a handle.
pub(crate) fn compute_of(handle: u64) -> Res<(Device, Instance<'static>, Compute)> {
    if handle >> 32 != COMPUTE_INSTANCE {
        return Err(INVALID_ARGUMENT);
    }
    let (device, instance) = instance_of(GPU_INSTANCE << 32 | (handle & 0xffff_ff00))?;
    let compute = mig::computes(device.machine, device.card, instance.position)
        .into_iter()
        .find(|c| u64::from(c.id) == handle & 0xff)
        .ok_or(NOT_FOUND)?;
    Ok((device, instance, compute))
}
