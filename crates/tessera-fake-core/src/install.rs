//! Making and removing a driver root.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use crate::elf;
use crate::layout::{LAYOUT_VERSION, MAGIC, State, field, name_hash};
use crate::machine::{Machine, OpenError, device_path};
use crate::model::{MachineSpec, ModelError};

/// Soname and possible file names of each library in a build folder.
const LIBRARIES: [(&str, [&str; 3]); 2] = [
    ("libcuda.so.1", ["libcuda.so.1", "libcuda.so", "libfake_cuda.so"]),
    (
        "libnvidia-ml.so.1",
        ["libnvidia-ml.so.1", "libnvidia_ml.so", "libnvidia-ml.so"],
    ),
];

/// Copy of the description, for people.
pub const DESCRIPTION_FILE: &str = "machine.yaml";

/// Why a root could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file operation did not work.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The description is wrong.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// The libraries are not where they should be.
    #[error("{library} is not in {folder}; build the simulated libraries, or name their folder")]
    NoLibrary {
        /// Soname.
        library: &'static str,
        /// Folder that was searched.
        folder: PathBuf,
    },
    /// The root holds a real driver, or something else that is not ours.
    #[error("{0} is not a simulated driver root; it was left as it is")]
    NotOurs(PathBuf),
    /// A library could not be changed as asked.
    #[error("{path}: {problem}")]
    Library {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The fresh state does not open.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// Processes use the machine.
    #[error("{0} processes use the machine; end them first or pass --force")]
    InUse(usize),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError + '_ {
    move |source| InstallError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// Makes the driver root: device files, libraries, and a copy of the description.
///
/// A root that exists is replaced when it is one of ours and no process uses it (or `force`).
/// The control file appears last, so a root is complete as soon as a client can open it.
///
/// # Errors
/// A wrong description, missing libraries, a root that is not ours or in use, file errors.
pub fn install(text: &str, root: &Path, libraries: Option<&Path>, force: bool) -> Result<(), InstallError> {
    let spec = MachineSpec::parse(text)?;
    let built = spec.build()?;
    let control = device_path(root, "nvidiactl");
    if control.symlink_metadata().is_ok() {
        uninstall(root, force)?;
    }
    let dev = root.join("dev");
    let lib = root.join("lib64");
    for folder in [&dev, &lib] {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    if let Some(from) = libraries {
        for (soname, names) in LIBRARIES {
            let source = names
                .iter()
                .map(|n| from.join(n))
                .find(|p| p.is_file())
                .ok_or_else(|| InstallError::NoLibrary {
                    library: soname,
                    folder: from.to_path_buf(),
                })?;
            let mut bytes = fs::read(&source).map_err(at(&source))?;
            elf::hide(&mut bytes, &spec.without).map_err(|problem| InstallError::Library {
                path: source.clone(),
                problem,
            })?;
            let target = lib.join(soname);
            replace(&target, &bytes, 0o755)?;
            let link = lib.join(soname.trim_end_matches(".1"));
            remove(&link)?;
            std::os::unix::fs::symlink(soname, &link).map_err(at(&link))?;
        }
    }
    for desc in &built.descs {
        let path = device_path(root, &format!("nvidia{}", desc.minor));
        replace(&path, desc.bus_id().as_bytes(), 0o666)?;
    }
    replace(&device_path(root, "nvidia-uvm"), b"", 0o666)?;
    replace(&root.join(DESCRIPTION_FILE), text.as_bytes(), 0o644)?;

    let fresh = control.with_extension("new");
    remove(&fresh)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&fresh)
        .map_err(at(&fresh))?;
    let size = std::mem::size_of::<State>() as u64;
    file.set_len(size).map_err(at(&fresh))?;
    // The state is written field by field through a plain buffer of the description part only:
    // all that follows starts as zero, which the empty file already is.
    let mut head = zeroed_head();
    head.magic = MAGIC;
    head.version = LAYOUT_VERSION;
    head.cards_len = u32::try_from(built.descs.len()).unwrap_or(0);
    head.size = size;
    head.cuda_version = built.cuda_version;
    head.granule_bytes = spec.granule_kib << 10;
    head.slice_us = 2000;
    head.kernel_us = spec.kernel_us;
    head.in_flight_max = spec.in_flight;
    head.driver = field(&spec.driver);
    for (slot, name) in head.without.iter_mut().zip(&spec.without) {
        *slot = name_hash(name);
    }
    head.descs[..built.descs.len()].copy_from_slice(&built.descs);
    head.topology = built.topology;
    head.clock_base = crate::clock::monotonic_ns();
    let (clock_mode, clock_scale) = spec.clock.words();
    head.clock_scale = clock_scale;
    head.launch_ns = spec.clock.launch_ns();
    head.link_bytes_us = spec.link_gb_s * 1000;
    head.mps = u32::from(spec.mps);
    head.limits_answer = spec.limits_answer();
    // SAFETY: `head` is plain numbers without invalid values; the padding of `repr(C)` was zeroed.
    let bytes =
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(&*head).cast::<u8>(), std::mem::size_of::<Head>()) };
    file.write_all_at(bytes, 0).map_err(at(&fresh))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o666)).map_err(at(&fresh))?;
    drop(file);
    fs::rename(&fresh, &control).map_err(at(&control))?;
    let machine = Machine::at(root)?;
    machine.start_clock(clock_mode);
    for (card, desc) in built.descs.iter().enumerate() {
        machine.card_state(card).mig_on.store(desc.mig_at_start, SeqCst);
    }
    Ok(())
}

/// Removes a simulated driver root; the folder itself stays when other things are in it.
///
/// # Errors
/// The root is not one of ours, or processes use it and `force` is false.
pub fn uninstall(root: &Path, force: bool) -> Result<(), InstallError> {
    let control = device_path(root, "nvidiactl");
    let mut minors: Vec<u32> = Vec::new();
    match Machine::at(root) {
        Ok(machine) => {
            let live = machine.live_processes();
            if live > 0 && !force {
                return Err(InstallError::InUse(live));
            }
            minors.extend((0..machine.cards()).map(|c| machine.card(c).minor));
        }
        // A file of another version is still ours by its name beside the description.
        Err(OpenError::Version { .. }) if root.join(DESCRIPTION_FILE).is_file() => {
            minors.extend(0..64);
        }
        Err(OpenError::Open { ref source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(_) => return Err(InstallError::NotOurs(root.to_path_buf())),
    }
    remove(&control)?;
    for minor in minors {
        remove(&device_path(root, &format!("nvidia{minor}")))?;
    }
    remove(&device_path(root, "nvidia-uvm"))?;
    for (soname, _) in LIBRARIES {
        remove(&root.join("lib64").join(soname))?;
        remove(&root.join("lib64").join(soname.trim_end_matches(".1")))?;
    }
    remove(&root.join(DESCRIPTION_FILE))?;
    for folder in [root.join("dev"), root.join("lib64"), root.to_path_buf()] {
        // Not empty: somebody else's files are in it.
        fs::remove_dir(folder).ok();
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path)(e)),
        _ => Ok(()),
    }
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let fresh = path.with_file_name(format!(
        ".{}.new",
        path.file_name().unwrap_or_default().to_string_lossy()
    ));
    fs::write(&fresh, bytes).map_err(at(&fresh))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).map_err(at(&fresh))?;
    fs::rename(&fresh, path).map_err(at(path))
}

/// The description part at the start of [`State`].
#[repr(C)]
struct Head {
    magic: u64,
    version: u32,
    cards_len: u32,
    size: u64,
    cuda_version: u32,
    pad: u32,
    granule_bytes: u64,
    slice_us: u64,
    kernel_us: u64,
    in_flight_max: u64,
    driver: [u8; 32],
    without: [u64; crate::layout::MAX_WITHOUT],
    descs: [crate::layout::CardDesc; crate::layout::MAX_CARDS],
    topology: [[u8; crate::layout::MAX_CARDS]; crate::layout::MAX_CARDS],
    clock_base: u64,
    clock_scale: u64,
    launch_ns: u64,
    link_bytes_us: u64,
    mps: u32,
    limits_answer: i32,
}

const _: () = {
    assert!(std::mem::offset_of!(Head, descs) == std::mem::offset_of!(State, descs));
    assert!(std::mem::offset_of!(Head, topology) == std::mem::offset_of!(State, topology));
    assert!(std::mem::offset_of!(Head, limits_answer) == std::mem::offset_of!(State, limits_answer));
    assert!(std::mem::size_of::<Head>() <= std::mem::offset_of!(State, clock_mode));
};

fn zeroed_head() -> Box<Head> {
    // SAFETY: every field is a number or an array of numbers, for which zero is valid.
    unsafe { Box::new(std::mem::zeroed()) }
}
