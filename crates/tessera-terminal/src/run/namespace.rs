//! The mounts that only the command sees.

#![expect(unsafe_code, reason = "system calls between fork and exec")]

use std::{
    ffi::{CStr, CString, OsStr},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, process::CommandExt as _},
    },
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

/// An entry of `/run` that is to stay visible below the empty one.
struct Kept {
    target: CString,
    source: CString,
    kind: Kind,
    /// Keeps the source reachable while the folder above it is covered.
    _file: Option<File>,
}

enum Kind {
    Folder,
    File,
    Link,
}

/// Everything that the child needs, made before the fork: between fork and exec there are only system calls.
struct Plan {
    new_user: Option<[CString; 2]>,
    /// Covered with an empty file system, on which the two mount points are made.
    cover: &'static CStr,
    kept: Vec<Kept>,
    grant: CString,
    account: CString,
    preload: Option<CString>,
    _files: Vec<File>,
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
    let mut files = Vec::new();
    let mut by_descriptor = |path: &Path| -> Result<CString> {
        let file = open_path(path).with_context(|| format!("opening {}", path.display()))?;
        let text = descriptor_path(file.as_raw_fd());
        files.push(file);
        Ok(text)
    };
    let grant = by_descriptor(&dir.read_only())?;
    let account = by_descriptor(&dir.read_write())?;
    let preload = preload.map(&mut by_descriptor).transpose()?;
    let has_folder = Path::new("/run/tessera").is_dir();
    // SAFETY: no conditions.
    let gid = unsafe { libc::getegid() };
    let map = |id: u32| CString::new(format!("{id} {id} 1")).unwrap_or_default();
    let plan = Plan {
        new_user: (!root).then(|| [map(uid()), map(gid)]),
        cover: if has_folder { c"/run/tessera" } else { c"/run" },
        kept: if has_folder { Vec::new() } else { entries_of_run() },
        grant,
        account,
        preload,
        _files: files,
    };
    // SAFETY: `enter` makes system calls only and allocates nothing.
    unsafe { command.pre_exec(move || enter(&plan)) };
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

fn open_path(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

fn descriptor_path(fd: RawFd) -> CString {
    CString::new(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

fn entries_of_run() -> Vec<Kept> {
    let Ok(entries) = fs::read_dir("/run") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let target = CString::new(path.as_os_str().as_bytes()).ok()?;
            let kind = fs::symlink_metadata(&path).ok()?.file_type();
            if kind.is_symlink() {
                let source = CString::new(fs::read_link(&path).ok()?.as_os_str().as_bytes()).ok()?;
                return Some(Kept { target, source, kind: Kind::Link, _file: None });
            }
            let file = open_path(&path).ok()?;
            let source = descriptor_path(file.as_raw_fd());
            let kind = if kind.is_dir() { Kind::Folder } else { Kind::File };
            Some(Kept { target, source, kind, _file: Some(file) })
        })
        .collect()
}

fn enter(plan: &Plan) -> io::Result<()> {
    let none = ptr::null();
    let spaces = libc::CLONE_NEWNS | if plan.new_user.is_some() { libc::CLONE_NEWUSER } else { 0 };
    // SAFETY: flags only.
    check(unsafe { libc::unshare(spaces) })?;
    if let Some([user, group]) = &plan.new_user {
        write(c"/proc/self/setgroups", c"deny")?;
        write(c"/proc/self/uid_map", user)?;
        write(c"/proc/self/gid_map", group)?;
    }
    // SAFETY: C strings; no data.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) })?;
    let options = c"mode=755".as_ptr().cast();
    // SAFETY: C strings.
    check(unsafe { libc::mount(c"tmpfs".as_ptr(), plan.cover.as_ptr(), c"tmpfs".as_ptr(), 0, options) })?;
    for entry in &plan.kept {
        keep(entry)?;
    }
    // SAFETY: a C string. There already when it is what was covered.
    unsafe { libc::mkdir(c"/run/tessera".as_ptr(), 0o755) };
    for (source, target, flags) in
        [(&plan.grant, c"/run/tessera/grant", libc::MS_RDONLY), (&plan.account, c"/run/tessera/account", 0)]
    {
        // SAFETY: a C string.
        check(unsafe { libc::mkdir(target.as_ptr(), 0o755) })?;
        bind(source, target, flags)?;
    }
    if let Some(source) = &plan.preload {
        bind(source, c"/etc/ld.so.preload", libc::MS_RDONLY)?;
    }
    Ok(())
}

fn keep(entry: &Kept) -> io::Result<()> {
    let target = entry.target.as_ptr();
    match entry.kind {
        // SAFETY: C strings.
        Kind::Link => check(unsafe { libc::symlink(entry.source.as_ptr(), target) }),
        Kind::Folder => {
            // SAFETY: a C string.
            check(unsafe { libc::mkdir(target, 0o755) })?;
            bind(&entry.source, &entry.target, libc::MS_REC)
        }
        Kind::File => {
            // SAFETY: a C string and a mode.
            let fd = unsafe { libc::open(target, libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC, 0o600) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: opened above.
            unsafe { libc::close(fd) };
            bind(&entry.source, &entry.target, 0)
        }
    }
}

fn bind(source: &CStr, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let none = ptr::null();
    let recursive = flags & libc::MS_REC;
    // SAFETY: C strings; no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), none, libc::MS_BIND | recursive, none.cast()) })?;
    if flags & libc::MS_RDONLY != 0 {
        // What is locked on the file system below must stay so in a user namespace.
        let locked = libc::MS_NOSUID | libc::MS_NODEV;
        let again = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | locked;
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
    let result = if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: opened above.
    unsafe { libc::close(fd) };
    result
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
