#![allow(clippy::indexing_slicing, reason = "tests")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::CardGrant;

fn grant(card: &str) -> Grant {
    let mut grant = Grant::new(GrantId::from_bytes([7; 16]), "uid", "main").unwrap();
    grant.push_card(CardGrant::with_memory(card, 1 << 30).unwrap()).unwrap();
    grant
}

#[test]
fn a_grant_is_made_sealed_changed_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("grants");
    assert_eq!(scan(&root).unwrap(), []);
    let mut pending = grant("GPU-a");
    let dir = create_grant_dir(&root, &pending).unwrap();
    assert_eq!(scan(&root).unwrap(), [pending.id]);
    assert_eq!(read_grant(&dir).unwrap(), pending);
    assert!(create_grant_dir(&root, &pending).is_err(), "an id is used once");

    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.grant_file()), 0o444);
    assert_eq!(mode(dir.account_file()), 0o666);
    assert_eq!(fs::metadata(dir.account_file()).unwrap().size(), ACCOUNT_SIZE as u64);

    // Not yet proven: the cards may still change hands.
    pending = grant("GPU-b");
    replace(&root, &mut pending).unwrap();
    let sealed = seal(&root, pending.id).unwrap();
    assert_eq!((sealed.state, sealed.generation), (GrantState::Sealed, 6));
    assert_eq!(seal(&root, pending.id).unwrap(), sealed);

    let mut larger = sealed;
    larger.cards_mut()[0].memory_bytes = 2 << 30;
    replace(&root, &mut larger).unwrap();
    assert_eq!(read_grant(&dir).unwrap().cards()[0].memory_bytes, 2 << 30);
    let verdict = fs::read(dir.verdict_file()).unwrap();
    assert_eq!(verdict[16..24], larger.generation.to_le_bytes());
    let mut other = grant("GPU-c");
    assert!(matches!(replace(&root, &mut other), Err(FsError::CardsChanged(_))));

    remove(&root, larger.id).unwrap();
    remove(&root, larger.id).unwrap();
    assert_eq!(scan(&root).unwrap(), []);
}

#[test]
fn what_a_crash_left_is_neither_listed_nor_in_the_way() {
    let root = tempfile::tempdir().unwrap();
    let grant = grant("GPU-a");
    let left = root.path().join(format!(".{}", grant.id)).join("ro");
    fs::create_dir_all(&left).unwrap();
    fs::create_dir(root.path().join("somebody-elses")).unwrap();
    assert_eq!(scan(root.path()).unwrap(), []);
    let dir = create_grant_dir(root.path(), &grant).unwrap();
    fs::write(dir.read_only().join(".grant"), "half").unwrap();
    seal(root.path(), grant.id).unwrap();
    assert_eq!(read_grant(&dir).unwrap().state, GrantState::Sealed);
}

#[test]
fn a_damaged_grant_is_an_error_with_its_path() {
    let root = tempfile::tempdir().unwrap();
    let grant = grant("GPU-a");
    let dir = create_grant_dir(root.path(), &grant).unwrap();
    let mut bytes = grant.encode();
    bytes[300] ^= 1;
    fs::set_permissions(dir.grant_file(), Permissions::from_mode(0o644)).unwrap();
    fs::write(dir.grant_file(), bytes).unwrap();
    let error = read_grant(&dir).unwrap_err();
    assert!(error.to_string().contains("ro/grant"), "{error}");
    assert!(matches!(
        error,
        FsError::Grant {
            source: GrantError::Checksum { .. },
            ..
        }
    ));
}

#[test]
fn a_new_life_begins_with_an_empty_account() {
    let root = tempfile::tempdir().unwrap();
    let grant = grant("GPU-a");
    let dir = create_grant_dir(root.path(), &grant).unwrap();
    let before = fs::metadata(dir.account_file()).unwrap().ino();
    reset_account(root.path(), grant.id).unwrap();
    let after = fs::metadata(dir.account_file()).unwrap();
    assert_ne!(before, after.ino());
    assert_eq!(after.size(), ACCOUNT_SIZE as u64);
    assert_eq!(after.permissions().mode() & 0o777, 0o666);
}
