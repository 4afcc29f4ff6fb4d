//! Commands that the library cannot be loaded into.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// Refuses a command that is linked against musl, or a script that such a program runs. What cannot be found or read
/// is left to the start, which says so itself.
///
/// # Errors
/// That the command is on musl, with the reason and what to do.
pub(super) fn refuse_musl(program: &OsStr, path: Option<&OsStr>) -> Result<()> {
    let Some(file) = find(program, path) else {
        return Ok(());
    };
    if let Ok(Some(loader)) = tessera_no_musl::musl_loader_of(&file) {
        bail!(
            "`{}` {} (it is started by {}). Use a build of it for glibc, or run it without a share",
            program.display(),
            tessera_no_musl::REASON,
            loader.display(),
        );
    }
    Ok(())
}

/// The file that a command of this name starts: as it is written if there is a `/` in it, else by the search path.
fn find(program: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    let can_run = |file: &Path| {
        std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    // As the C library does without a search path.
    std::env::split_paths(path.unwrap_or(OsStr::new("/bin:/usr/bin")))
        .map(|folder| folder.join(program))
        .find(|file| can_run(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, bytes: &[u8], mode: u32) {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_command_on_musl_is_refused_wherever_it_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["hidden", "bin"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let loader = at("ld-musl-x86_64.so.1");
        let script = format!("#!{} prog\n", loader.display());
        put(&at("bin/tool"), script.as_bytes(), 0o755);
        // Not to be run, so not what the name means.
        put(&at("hidden/tool"), b"#!/bin/sh\n", 0o644);
        let path = std::env::join_paths([at("hidden"), at("bin")]).unwrap();
        let error = refuse_musl(OsStr::new("tool"), Some(&path)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "`tool` is built on musl, whose loader takes no preloaded library, so its share of the card cannot be \
                 held (it is started by {}). Use a build of it for glibc, or run it without a share",
                loader.display()
            )
        );
        assert!(refuse_musl(at("bin/tool").as_os_str(), None).is_err());
        put(&at("hidden/tool"), b"#!/bin/sh\n", 0o755);
        refuse_musl(OsStr::new("tool"), Some(&path)).unwrap();
        refuse_musl(OsStr::new("absent"), Some(&path)).unwrap();
        refuse_musl(OsStr::new("sh"), None).unwrap();
    }
}
