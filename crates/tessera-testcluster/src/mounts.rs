//! The mount table of this process.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) fs_type: String,
    /// The options of the superblock: for cgroups, the controllers.
    pub(crate) super_options: String,
}

pub(crate) fn list() -> Vec<Mount> {
    parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Mount points at or below a folder, deepest first.
pub(crate) fn under(dir: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = list()
        .into_iter()
        .map(|m| m.point)
        .filter(|p| p.starts_with(dir))
        .collect();
    points.sort();
    points.reverse();
    points
}

fn parse(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = before.split(' ').nth(4)?;
            let mut after = after.split(' ');
            let fs_type = after.next()?.to_owned();
            let super_options = after.nth(1).unwrap_or_default().to_owned();
            Some(Mount {
                point: unescape(point),
                fs_type,
                super_options,
            })
        })
        .collect()
}

/// The kernel writes blanks and backslashes of a path as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(decoded) => {
                out.push(decoded);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_blanks_in_the_path_is_read() {
        let text = "36 35 98:0 /a /mnt/with\\040blank rw,noatime master:1 shared:7 - tmpfs tmpfs rw,size=4k\n\
                    40 35 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let mounts = parse(text);
        assert_eq!(mounts[0].point, Path::new("/mnt/with blank"));
        assert_eq!(mounts[0].fs_type, "tmpfs");
        assert_eq!(mounts[1].super_options, "rw,cpu,cpuacct");
    }
}
