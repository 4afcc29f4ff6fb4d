//! Grants and our records about them, on disk.
//!
//! A record is a small JSON file beside the grants, out of every container's
//! sight. It is written before the grant and removed after it, so a crash
//! leaves at worst a record without a grant, which the next start removes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tessera_region::resize::{self, ResizeError};
use tessera_region::{ACCOUNT_SIZE, CardFlags, CardGrant, Grant, GrantError, GrantId, GrantState, TURNS_SIZE, fs};
use tessera_types::Share;
use tracing::warn;

use crate::book::Record;

/// Bytes of a record that we read back.
const RECORD_MAX: u64 = 1 << 20;

/// Why a grant cannot be made, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or tmpfs is full.
    #[error("no space left in `{path}` for a grant; free some, nothing can be admitted before")]
    Full {
        /// Folder.
        path: PathBuf,
    },
    /// A record file.
    #[error("cannot keep the record `{path}`")]
    Record {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A grant file.
    #[error("cannot keep the grant")]
    Grant(#[from] tessera_region::fs::FsError),
    /// A grant that cannot be expressed.
    #[error("the grant cannot be expressed")]
    Express(#[from] GrantError),
    /// The share of a running container stays as it is.
    #[error("container `{container}`: {source}")]
    Resize {
        /// The container.
        container: String,
        /// Why.
        source: ResizeError,
    },
    /// The system gives no random numbers.
    #[error("no random number for a grant id")]
    Random(#[source] io::Error),
}

/// What is kept for a container while a more important one runs, in 1/1000 of the card's time.
const KEPT_PERMILLE: u32 = 10;

/// Limits beyond the share itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras {
    /// Whether compute limits are off.
    pub no_core_limit: bool,
    /// Whether memory may leave the card while its container waits.
    pub swap: bool,
    /// Whether the driver holds the pod to its memory on all its cards.
    pub driver_held: bool,
    /// Whether a compute limit is a hard cap.
    pub core_cap: bool,
    /// Task priority, 0 the highest, where the pod names one: then it takes part in priorities.
    pub priority: Option<u8>,
}

/// The folders.
#[derive(Debug, Clone)]
pub struct Store {
    grants: PathBuf,
    records: PathBuf,
}

impl Store {
    /// Makes the folders if they are missing.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(grants: &Path, records: &Path) -> Result<Self, StoreError> {
        for folder in [grants, records] {
            std::fs::create_dir_all(folder).map_err(|source| StoreError::Record {
                path: folder.to_owned(),
                source,
            })?;
        }
        Ok(Self {
            grants: grants.to_owned(),
            records: records.to_owned(),
        })
    }

    /// Where grants are.
    #[must_use]
    pub fn grants(&self) -> &Path {
        &self.grants
    }

    /// A new random id.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new_id() -> Result<GrantId, StoreError> {
        let mut bytes = [0; 16];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes))
            .map_err(StoreError::Random)?;
        Ok(GrantId::from_bytes(bytes))
    }

    /// Writes the record, and the grant (pending) when limits are enforced.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is left behind then.
    pub fn create(&self, record: &Record, extras: Extras) -> Result<(), StoreError> {
        self.write_record(record)?;
        if record.limited {
            let made = grant_of(record, extras)
                .and_then(|grant| fs::create_grant_dir(&self.grants, &grant).map_err(Into::into));
            if let Err(error) = made {
                self.remove(record);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Brings record and grant to the state of `record`: owner, shares, sealed.
    /// A grant that is missing is made.
    ///
    /// # Errors
    /// See [`StoreError`]. The step may be repeated.
    pub fn update(&self, record: &Record, extras: Extras) -> Result<(), StoreError> {
        self.write_record(record)?;
        let Some(id) = record.grant_id().filter(|_| record.limited) else {
            return Ok(());
        };
        let mut wanted = grant_of(record, extras)?;
        let folder = fs::GrantDir::new(&self.grants, id);
        if !folder.grant_file().exists() {
            fs::create_grant_dir(&self.grants, &wanted)?;
        }
        let found = fs::read_grant(&folder)?;
        let same =
            found.pod_uid == wanted.pod_uid && found.container == wanted.container && found.cards() == wanted.cards();
        if !same {
            wanted.generation = found.generation;
            fs::replace(&self.grants, &mut wanted)?;
        }
        if record.sealed && found.state != GrantState::Sealed {
            fs::seal(&self.grants, id)?;
        }
        Ok(())
    }

    /// Changes the shares of running containers to those of these records: all or none.
    ///
    /// # Errors
    /// See [`StoreError::Resize`]. The step may be repeated.
    pub fn resize(&self, steps: &[(Record, Extras)]) -> Result<(), StoreError> {
        let mut before: Vec<Grant> = Vec::new();
        for (new, extras) in steps {
            match self.put_in_force(new, *extras) {
                Ok(found) => before.extend(found),
                Err(error) => {
                    for mut old in before {
                        if let Err(error) = resize::resize(&self.grants, &mut old) {
                            warn!(grant = %old.id, %error, "Cannot take back half of a resize.");
                        }
                    }
                    return Err(error);
                }
            }
        }
        steps.iter().try_for_each(|(new, _)| self.write_record(new))
    }

    /// Makes the grant of a running container what its record says.
    ///
    /// # Errors
    /// As [`Store::resize`].
    pub fn align(&self, record: &Record, extras: Extras) -> Result<(), StoreError> {
        self.put_in_force(record, extras)?;
        if let Some(id) = record.grant_id().filter(|_| record.limited) {
            resize::finish(&self.grants, id).map_err(|source| stays(record, source))?;
        }
        Ok(())
    }

    /// The amounts of a record in its grant; gives back the grant before, if it differs. What else the grant says stays:
    /// the container was started with it.
    fn put_in_force(&self, record: &Record, extras: Extras) -> Result<Option<Grant>, StoreError> {
        let Some(id) = record.grant_id().filter(|_| record.limited) else {
            return Ok(None);
        };
        let found = fs::read_grant(&fs::GrantDir::new(&self.grants, id))?;
        let mut wanted = found.clone();
        for share in &record.shares {
            let meant = card_grant(share, extras)?;
            let Some(card) = wanted.cards_mut().iter_mut().find(|card| card.uuid == meant.uuid) else {
                return Err(tessera_region::fs::FsError::CardsChanged(id).into());
            };
            card.memory_bytes = meant.memory_bytes;
            if !extras.no_core_limit {
                card.cores_permille = meant.cores_permille;
            }
            if extras.priority.is_some() {
                card.priority = meant.priority;
                card.min_cores_permille = meant.min_cores_permille;
            }
        }
        if wanted == found {
            return Ok(None);
        }
        resize::resize(&self.grants, &mut wanted).map_err(|source| stays(record, source))?;
        Ok(Some(found))
    }

    /// A container starts anew: its earlier processes are gone with their pid
    /// namespace, and so is what they held.
    ///
    /// # Errors
    /// When the account cannot be made anew.
    pub fn restart(&self, record: &Record) -> Result<(), StoreError> {
        if let Some(id) = record.grant_id().filter(|_| record.limited) {
            fs::reset_account(&self.grants, id)?;
        }
        Ok(())
    }

    /// Cuts accounts that a container made longer than they are, so that none
    /// can fill the node's memory; gives back whose they are.
    #[must_use]
    pub fn cut_accounts<'a>(&self, records: impl IntoIterator<Item = &'a Record>) -> Vec<&'a Record> {
        let cut_file = |path: &Path, size: usize| -> io::Result<bool> {
            if std::fs::metadata(path)?.len() <= size as u64 {
                return Ok(false);
            }
            let file = std::fs::OpenOptions::new().write(true).open(path)?;
            file.set_len(size as u64)?;
            Ok(true)
        };
        let cut = |record: &Record| -> io::Result<bool> {
            let Some(id) = record.grant_id().filter(|_| record.limited) else {
                return Ok(false);
            };
            let folder = fs::GrantDir::new(&self.grants, id);
            let turns = cut_file(&folder.turns_file(), TURNS_SIZE).unwrap_or(false);
            Ok(cut_file(&folder.account_file(), ACCOUNT_SIZE)? || turns)
        };
        // One that cannot be looked at is on its way in or out.
        records
            .into_iter()
            .filter(|record| cut(record).unwrap_or(false))
            .collect()
    }

    /// Removes grant and record. What is missing is fine.
    pub fn remove(&self, record: &Record) {
        if let Some(id) = record.grant_id()
            && let Err(error) = fs::remove(&self.grants, id)
        {
            warn!(grant = %record.id, %error, "Cannot remove a grant.");
            return;
        }
        let path = self.record_path(&record.id);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(file = %path.display(), %error, "Cannot remove a grant's record."),
        }
    }

    /// Reads all records. Records whose grant is missing, and grants without a
    /// record, are removed: neither was ever answered to the kubelet, since the
    /// answer follows both.
    #[must_use]
    pub fn scan(&self) -> Vec<Record> {
        let grants = match fs::scan(&self.grants) {
            Ok(grants) => grants,
            Err(error) => {
                warn!(%error, "Cannot read the grants.");
                return Vec::new();
            }
        };
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.records).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                let _leftover = std::fs::remove_file(&path);
                continue;
            }
            match read_record(&path) {
                Ok(record) if !record.limited || record.grant_id().is_some_and(|id| grants.contains(&id)) => {
                    records.push(record);
                }
                Ok(record) => {
                    warn!(grant = %record.id, "Removing a record without its grant.");
                    self.remove(&record);
                }
                Err(error) => {
                    warn!(file = %path.display(), %error, "Removing a record that does not parse.");
                    let _removed = std::fs::remove_file(&path);
                }
            }
        }
        for id in grants {
            if !records.iter().any(|record| record.grant_id() == Some(id)) {
                warn!(grant = %id, "Removing a grant without its record.");
                if let Err(error) = fs::remove(&self.grants, id) {
                    warn!(grant = %id, %error, "Cannot remove a grant.");
                }
            }
        }
        records.sort_by_key(|record| record.serial);
        records
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.records.join(format!("{id}.json"))
    }

    fn write_record(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.record_path(&record.id);
        let temporary = path.with_extension("tmp");
        let text = serde_json::to_vec(record).map_err(|error| StoreError::Record {
            path: path.clone(),
            source: error.into(),
        })?;
        let written = std::fs::create_dir_all(&self.records)
            .and_then(|()| std::fs::File::create(&temporary))
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| std::fs::rename(&temporary, &path));
        written.map_err(|source| {
            let _removed = std::fs::remove_file(&temporary);
            if source.kind() == io::ErrorKind::StorageFull {
                StoreError::Full {
                    path: self.records.clone(),
                }
            } else {
                StoreError::Record { path, source }
            }
        })
    }
}

fn stays(record: &Record, source: ResizeError) -> StoreError {
    StoreError::Resize {
        container: record.container.clone(),
        source,
    }
}

fn read_record(path: &Path) -> io::Result<Record> {
    let file = std::fs::File::open(path)?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, RECORD_MAX), &mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// The grant that a record describes, pending or sealed as the record is.
fn grant_of(record: &Record, extras: Extras) -> Result<Grant, StoreError> {
    let id = record.grant_id().ok_or_else(|| StoreError::Record {
        path: record.id.clone().into(),
        source: io::ErrorKind::InvalidData.into(),
    })?;
    let mut grant = Grant::new(id, record.pod.uid.as_str(), &record.container)?;
    for share in &record.shares {
        grant.push_card(card_grant(share, extras)?)?;
    }
    Ok(grant)
}

fn card_grant(share: &Share, extras: Extras) -> Result<CardGrant, StoreError> {
    // An amount beyond the address space is as good as no card has.
    let bytes = share.memory.bytes().unwrap_or(u64::MAX);
    let mut card = CardGrant::with_memory(share.card.as_str(), bytes)?;
    if !extras.no_core_limit {
        card.cores_permille = share.cores.get().min(100) * 10;
    }
    if let Some(priority) = extras.priority {
        card.priority = priority;
        card.min_cores_permille = KEPT_PERMILLE;
    }
    if extras.swap {
        card.flags = card.flags.with(CardFlags::SWAP);
    }
    if extras.driver_held {
        card.flags = card.flags.with(CardFlags::DRIVER_HELD);
    }
    if extras.core_cap {
        card.flags = card.flags.with(CardFlags::CORE_CAP);
    }
    Ok(card)
}
