//! The mounts that only the command sees.

#![expect(unsafe_code, reason = "system calls between fork and exec")]

use std::{
    ffi::{CStr, CString, OsStr},
    fs, io,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
    ptr,
};

use anyhow::{Context as _, Result, anyhow};
use tessera_region::fs::GrantDir;

/// The effective user.
pub(super) fn uid() -> u32 {
    // SAFETY: no conditions.
    unsafe { libc::geteuid() }
}

/// Whether this process may mount without a user namespace.
pub(super) fn is_root() -> bool {
    uid() == 0
}

/// An entry of `/run` that is to stay visible on the empty one.
struct Kept {
    path: CString,
    kind: Kind,
}

enum Kind {
    Folder,
    File,
    /// Where it leads.
    Link(CString),
}

/// Everything that the child needs, made before the fork: between fork and exec there are only system calls.
struct Plan {
    new_user: Option<[CString; 2]>,
    /// Covered with an empty file system, on which the two mount points are made.
    cover: &'static CStr,
    kept: Vec<Kept>,
    /// Room for the descriptors of what is kept.
    opened: Vec<libc::c_int>,
    grant: CString,
    account: CString,
    preload: Option<CString>,
}

/// Gives a command its own view of the grant.
///
/// # Errors
/// When the grant's folders cannot be opened.
pub(super) fn prepare(command: &mut Command, dir: &GrantDir, preload: Option<&Path>) -> Result<()> {
    let root = is_root();
    if root {
        // A place to mount on; nothing else is changed on the machine.
        fs::create_dir_all("/run/tessera").context("creating /run/tessera")?;
    }
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).context("a path with a zero byte");
    let has_folder = Path::new("/run/tessera").is_dir();
    let kept = if has_folder { Vec::new() } else { entries_of_run() };
    // SAFETY: no conditions.
    let gid = unsafe { libc::getegid() };
    let map = |id: u32| CString::new(format!("{id} {id} 1")).unwrap_or_default();
    let mut plan = Plan {
        new_user: (!root).then(|| [map(uid()), map(gid)]),
        cover: if has_folder { c"/run/tessera" } else { c"/run" },
        opened: vec![-1; kept.len()],
        kept,
        grant: c_path(&dir.read_only())?,
        account: c_path(&dir.read_write())?,
        preload: preload.map(c_path).transpose()?,
    };
    // SAFETY: `enter` makes system calls only and allocates nothing.
    unsafe { command.pre_exec(move || enter(&mut plan)) };
    Ok(())
}

/// Says what a failed start means. The mounts happen in the child, so their errors come back as the start's.
pub(super) fn explain(error: io::Error, program: &OsStr) -> anyhow::Error {
    let name = program.display();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!("there is no command `{name}`"),
        io::ErrorKind::PermissionDenied if !is_root() => anyhow!(
            "`{name}` may not be run, or this machine does not let users make namespaces; run as root, or allow \
             unprivileged user namespaces"
        ),
        _ => anyhow::Error::new(error).context(format!("starting `{name}` with its own mounts")),
    }
}

fn entries_of_run() -> Vec<Kept> {
    let Ok(entries) = fs::read_dir("/run") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let found = fs::symlink_metadata(&path).ok()?.file_type();
            let kind = if found.is_symlink() {
                Kind::Link(CString::new(fs::read_link(&path).ok()?.as_os_str().as_bytes()).ok()?)
            } else if found.is_dir() {
                Kind::Folder
            } else {
                Kind::File
            };
            Some(Kept {
                path: CString::new(path.as_os_str().as_bytes()).ok()?,
                kind,
            })
        })
        .collect()
}

fn enter(plan: &mut Plan) -> io::Result<()> {
    let none = ptr::null();
    let spaces = libc::CLONE_NEWNS
        | if plan.new_user.is_some() {
            libc::CLONE_NEWUSER
        } else {
            0
        };
    // SAFETY: flags only.
    check(unsafe { libc::unshare(spaces) })?;
    if let Some([user, group]) = &plan.new_user {
        write(c"/proc/self/setgroups", c"deny")?;
        write(c"/proc/self/uid_map", user)?;
        write(c"/proc/self/gid_map", group)?;
    }
    // SAFETY: C strings; no data.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) })?;
    // Held open by descriptor, since they may lie below what is covered next; opened here, since a mount of another
    // mount namespace cannot be bound.
    let grant = open(&plan.grant)?;
    let account = open(&plan.account)?;
    let preload = plan.preload.as_deref().map(open).transpose()?;
    for (entry, fd) in plan.kept.iter().zip(&mut plan.opened) {
        // What this user cannot reach stays hidden.
        *fd = open(&entry.path).unwrap_or(-1);
    }
    let options = c"mode=755".as_ptr().cast();
    // SAFETY: C strings.
    check(unsafe { libc::mount(c"tmpfs".as_ptr(), plan.cover.as_ptr(), c"tmpfs".as_ptr(), 0, options) })?;
    for (entry, fd) in plan.kept.iter().zip(&plan.opened) {
        keep(entry, *fd)?;
    }
    // SAFETY: a C string. There already when it is what was covered.
    unsafe { libc::mkdir(c"/run/tessera".as_ptr(), 0o755) };
    for (source, target, flags) in [
        (grant, c"/run/tessera/grant", libc::MS_RDONLY),
        (account, c"/run/tessera/account", 0),
    ] {
        // SAFETY: a C string.
        check(unsafe { libc::mkdir(target.as_ptr(), 0o755) })?;
        bind(source, target, flags)?;
    }
    if let Some(source) = preload {
        bind(source, c"/etc/ld.so.preload", libc::MS_RDONLY)?;
    }
    Ok(())
}

fn open(path: &CStr) -> io::Result<libc::c_int> {
    // SAFETY: a C string and flags.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    if fd < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(fd)
    }
}

fn keep(entry: &Kept, fd: libc::c_int) -> io::Result<()> {
    let target = entry.path.as_ptr();
    if fd < 0 {
        return Ok(());
    }
    match &entry.kind {
        // SAFETY: C strings.
        Kind::Link(leads_to) => check(unsafe { libc::symlink(leads_to.as_ptr(), target) }),
        Kind::Folder => {
            // SAFETY: a C string.
            check(unsafe { libc::mkdir(target, 0o755) })?;
            bind(fd, &entry.path, libc::MS_REC)
        }
        Kind::File => {
            // SAFETY: a C string and a mode.
            let made = unsafe { libc::open(target, libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC, 0o600) };
            if made < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: opened above.
            unsafe { libc::close(made) };
            bind(fd, &entry.path, 0)
        }
    }
}

/// `/proc/self/fd/<n>` without allocation.
fn descriptor_path(fd: libc::c_int) -> [u8; 32] {
    let mut path = [0; 32];
    let prefix = b"/proc/self/fd/";
    path[..prefix.len()].copy_from_slice(prefix);
    let digits = fd.max(0).checked_ilog10().unwrap_or(0) + 1;
    let mut rest = fd.max(0);
    for place in path.iter_mut().skip(prefix.len()).take(digits as usize).rev() {
        *place = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    path
}

fn bind(source: libc::c_int, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let none = ptr::null();
    let source = descriptor_path(source);
    let how = libc::MS_BIND | flags & libc::MS_REC;
    // SAFETY: C strings; no data.
    check(unsafe { libc::mount(source.as_ptr().cast(), target.as_ptr(), none, how, none.cast()) })?;
    if flags & libc::MS_RDONLY != 0 {
        // What is set on the file system below may not be cleared in a user namespace; nothing here needs it clear.
        let kept = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let again = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | kept;
        // SAFETY: as above.
        check(unsafe { libc::mount(none, target.as_ptr(), none, again, none.cast()) })?;
    }
    Ok(())
}

fn write(path: &CStr, text: &CStr) -> io::Result<()> {
    // SAFETY: a C string and flags.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = text.to_bytes();
    // SAFETY: an open file and bytes of that length.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    let result = if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    };
    // SAFETY: opened above.
    unsafe { libc::close(fd) };
    result
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::descriptor_path;

    #[test]
    fn a_descriptor_has_a_path() {
        for fd in [0, 7, 10, 99, 1_048_575] {
            let path = descriptor_path(fd);
            let text = std::ffi::CStr::from_bytes_until_nul(&path).unwrap().to_str().unwrap();
            assert_eq!(text, format!("/proc/self/fd/{fd}"));
        }
    }
}
