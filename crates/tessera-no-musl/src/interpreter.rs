//! Which loader a program on disk asks the system for.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::{ffi::OsStringExt as _, fs::FileExt as _};
use std::path::{Path, PathBuf};

/// How many scripts in a row are followed, each run by the next; the system follows no more.
const SCRIPTS_MAX: usize = 5;

/// Entries of a program table that are looked at; the system takes no more than fit into a page.
const ENTRIES_MAX: u16 = 73;
/// Longest path of a loader, with the zero byte.
const PATH_MAX: u64 = 4096;
/// Longest first line of a script, as in the system.
const LINE_MAX: usize = 256;

/// Kind of the program table's entry that names the loader.
const PT_INTERP: u32 = 3;

/// Whether this is a loader of musl, by its name: `ld-musl-x86_64.so.1`, in any folder.
#[must_use]
pub fn is_musl_loader(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-musl-"))
}

/// The loader of musl that starting this file would run: that of the program, or of the program that runs the script.
/// `None` for everything else: other loaders, no loader, files that are no program.
///
/// # Errors
/// When the file cannot be opened or read.
pub fn musl_loader_of(program: &Path) -> io::Result<Option<PathBuf>> {
    let mut next = program.to_owned();
    for _ in 0..SCRIPTS_MAX {
        if is_musl_loader(&next) {
            return Ok(Some(next));
        }
        match starter(&next)? {
            Some(Starter::Loader(loader)) => return Ok(is_musl_loader(&loader).then_some(loader)),
            Some(Starter::Runner(runner)) => next = runner,
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// What the system starts in a file's place.
enum Starter {
    /// The loader of a dynamically linked program.
    Loader(PathBuf),
    /// The program after `#!`.
    Runner(PathBuf),
}

fn starter(path: &Path) -> io::Result<Option<Starter>> {
    let file = File::open(path)?;
    let mut head = Vec::with_capacity(LINE_MAX);
    (&file).take(LINE_MAX as u64).read_to_end(&mut head)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let word = line.trim_ascii_start();
        let word = word.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        return Ok((!word.is_empty()).then(|| Starter::Runner(to_path(word))));
    }
    // 64 bits, little endian: nothing else can open a 64-bit driver on the processors that there are cards for.
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let (Some(table), Some(size), Some(count)) = (u64_at(&head, 32), u16_at(&head, 54), u16_at(&head, 56)) else {
        return Ok(None);
    };
    for number in 0..count.min(ENTRIES_MAX) {
        let mut entry = [0; 56];
        let at = table.checked_add(u64::from(number) * u64::from(size));
        let Some(at) = at.filter(|_| usize::from(size) == entry.len()) else {
            return Ok(None);
        };
        match file.read_exact_at(&mut entry, at) {
            Ok(()) => {}
            // Cut short: no program that the system would start.
            Err(error) if is_outside(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let (Some(kind), Some(at), Some(length)) = (u32_at(&entry, 0), u64_at(&entry, 8), u64_at(&entry, 32)) else {
            return Ok(None);
        };
        if kind != PT_INTERP {
            continue;
        }
        let Ok(length) = usize::try_from(length.min(PATH_MAX)) else {
            return Ok(None);
        };
        let mut text = vec![0; length];
        return match file.read_exact_at(&mut text, at) {
            Ok(()) => {
                let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
                text.truncate(end);
                Ok(Some(Starter::Loader(to_path(&text))))
            }
            Err(error) if is_outside(&error) => Ok(None),
            Err(error) => Err(error),
        };
    }
    Ok(None)
}

/// Whether a place was asked for that the file does not have.
fn is_outside(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput)
}

fn to_path(bytes: &[u8]) -> PathBuf {
    std::ffi::OsString::from_vec(bytes.to_owned()).into()
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}
