//! `cargo xtask names`: which names the vendor's headers declare, by version.
//!
//! The library must have an opinion about every name that a driver exports. The headers of several releases come as
//! Python packages; from each only the names are kept, in `crates/tessera-shim/data/`, with the packages that they came
//! from. A test of the library fails for a name without a class.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::tool;

/// One library's headers.
struct Headers {
    /// Name of the list in `data/`.
    list: &'static str,
    header: &'static str,
    /// Version as people say it, and the package.
    packages: &'static [(&'static str, &'static str)],
    names: fn(&str) -> BTreeSet<String>,
}

const CUDA: Headers = Headers {
    list: "cuda-names.txt",
    header: "cuda.h",
    packages: &[
        ("11.7", "nvidia-cuda-runtime-cu11==11.7.99"),
        ("11.8", "nvidia-cuda-runtime-cu11==11.8.89"),
        ("12.0", "nvidia-cuda-runtime-cu12==12.0.146"),
        ("12.4", "nvidia-cuda-runtime-cu12==12.4.127"),
        ("12.8", "nvidia-cuda-runtime-cu12==12.8.90"),
        ("12.9", "nvidia-cuda-runtime-cu12==12.9.79"),
        ("13.0", "nvidia-cuda-runtime==13.0.96"),
        ("13.2", "nvidia-cuda-runtime==13.2.86"),
        ("13.5", "nvidia-cuda-runtime==13.5.37"),
    ],
    names: cuda_names,
};

const NVML: Headers = Headers {
    list: "nvml-names.txt",
    header: "nvml.h",
    packages: &[
        ("11.7", "nvidia-nvml-dev-cu11==11.7.91"),
        ("11.8", "nvidia-nvml-dev-cu11==11.8.86"),
        ("12.0", "nvidia-nvml-dev-cu12==12.0.140"),
        ("12.4", "nvidia-nvml-dev-cu12==12.4.127"),
        ("12.8", "nvidia-nvml-dev-cu12==12.8.90"),
        ("12.9", "nvidia-nvml-dev-cu12==12.9.79"),
        ("13.0", "nvidia-nvml-dev==13.0.87"),
        ("13.2", "nvidia-nvml-dev==13.2.86"),
        ("13.5", "nvidia-nvml-dev==13.5.37"),
    ],
    names: nvml_names,
};

pub(crate) fn run() -> Result<ExitCode> {
    for headers in [CUDA, NVML] {
        let mut versions: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (version, package) in headers.packages {
            let header = unpacked(package, headers.header)?;
            let bytes = std::fs::read(&header).with_context(|| format!("reading {}", header.display()))?;
            let names = (headers.names)(&String::from_utf8_lossy(&bytes));
            ensure!(names.len() > 100, "{}: {} names only", header.display(), names.len());
            tool::say(&format!("{package}: {} names", names.len()));
            for name in names {
                versions.entry(name).or_default().push(version);
            }
        }
        let list = tool::root().join("crates/tessera-shim/data").join(headers.list);
        std::fs::write(&list, text(&headers, &versions)?).with_context(|| format!("writing {}", list.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(headers: &Headers, versions: &BTreeMap<String, Vec<&str>>) -> Result<String> {
    let mut text = format!(
        "# Names that {} declares, and the releases that have them. Made by `cargo xtask names` from:\n",
        headers.header
    );
    for (version, package) in headers.packages {
        writeln!(text, "# {version} {package}")?;
    }
    for (name, versions) in versions {
        writeln!(text, "{name} {}", versions.join(" "))?;
    }
    Ok(text)
}

/// The header out of a package.
fn unpacked(package: &str, header: &str) -> Result<PathBuf> {
    let folder = tool::root().join("target/names").join(package);
    if let Some(found) = find(&folder, header)? {
        return Ok(found);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut download = Command::new("python3");
    download
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
        .arg(&folder)
        .arg(package);
    tool::run(package, &mut download)?;
    let wheel = find_with(&folder, &|name| name.ends_with(".whl"))?;
    let wheel = wheel.with_context(|| format!("{package} is no wheel"))?;
    let mut unpack = Command::new("python3");
    unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder);
    tool::run("unpacking", &mut unpack)?;
    find(&folder, header)?.with_context(|| format!("{package} has no {header}"))
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    find_with(folder, &|found| found == name)
}

fn find_with(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        let found = if path.is_dir() { find_with(&path, wanted)? } else { None };
        if found.is_some() {
            return Ok(found);
        }
        if path.file_name().and_then(|name| name.to_str()).is_some_and(wanted) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The word that follows each `mark`, if `opens` comes after it.
fn after<'a>(text: &'a str, mark: &'a str, opens: char) -> impl Iterator<Item = &'a str> {
    text.match_indices(mark).filter_map(move |(at, _)| {
        let rest = text.get(at + mark.len()..)?.trim_start();
        let end = rest.find(|c| !is_word(c))?;
        let (word, rest) = rest.split_at(end);
        rest.trim_start().starts_with(opens).then_some(word)
    })
}

/// `#define` lines as what is defined and as what.
fn defines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut words = line.trim_start().strip_prefix('#')?.split_whitespace();
        (words.next()? == "define").then_some(())?;
        Some((words.next()?, words.next()?))
    })
}

fn cuda_names(text: &str) -> BTreeSet<String> {
    let declared = after(text, " CUDAAPI", '(').filter(|name| name.starts_with("cu"));
    let mut names: BTreeSet<String> = declared.map(str::to_owned).collect();
    for (name, value) in defines(text).filter(|(name, _)| name.starts_with("cu")) {
        // `cuMemAlloc` is a name for `cuMemAlloc_v2`; with streams of threads it is one more.
        if value.starts_with(name) && value.chars().all(is_word) {
            names.insert(value.to_owned());
        }
        for (mark, suffix) in [("__CUDA_API_PTDS(", "_ptds"), ("__CUDA_API_PTSZ(", "_ptsz")] {
            if let Some(inner) = value.strip_prefix(mark).and_then(|rest| rest.strip_suffix(')')) {
                names.insert(inner.to_owned());
                names.insert(format!("{inner}{suffix}"));
            }
        }
    }
    // Defined in the header itself, so no driver exports them.
    for inline in after(text, "static inline CUresult", '(') {
        names.remove(inline);
    }
    names
}

fn nvml_names(text: &str) -> BTreeSet<String> {
    // One of them gives a text, not a code.
    let declared = after(text, " DECLDIR", '(').chain(after(text, " DECLDIR char*", '('));
    declared
        .filter(|name| name.starts_with("nvml"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{cuda_names, nvml_names};

    #[test]
    fn names_are_read_from_declarations_and_from_renames() {
        let text = "
            #define cuMemAlloc                          cuMemAlloc_v2
            #define cuMemcpy                            __CUDA_API_PTDS(cuMemcpy)
            #  define cuLaunchKernel                    __CUDA_API_PTSZ(cuLaunchKernel)
            #define CUDA_VERSION 13050
            #define cuGetProcAddress cuGetProcAddress_ptsz
            static inline CUresult cuGetProcAddress_ptsz(const char *symbol) {
            typedef void (CUDA_CB *CUhostFn)(void *userData);
            CUresult CUDAAPI cuInit(unsigned int Flags);
            CUresult CUDAAPI
            cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx);
        ";
        let names: Vec<String> = cuda_names(text).into_iter().collect();
        assert_eq!(
            names,
            [
                "cuCtxGetDevice_v2",
                "cuInit",
                "cuLaunchKernel",
                "cuLaunchKernel_ptsz",
                "cuMemAlloc_v2",
                "cuMemcpy",
                "cuMemcpy_ptds"
            ]
        );
        let text =
            "nvmlReturn_t DECLDIR nvmlInit_v2(void);\n#define DECLDIR\n const DECLDIR char* nvmlErrorString(int);";
        assert_eq!(
            nvml_names(text).into_iter().collect::<Vec<_>>(),
            ["nvmlErrorString", "nvmlInit_v2"]
        );
    }
}
