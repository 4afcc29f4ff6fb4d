//! The archive that containerd imports: `manifest.json`, one configuration,
//! and the layers, all named by their content.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::{Builder, Content, Layer};
use crate::error::{Error, IoContext};

pub(super) fn write(builder: &Builder, base: &[Layer], target: &Path) -> Result<(), Error> {
    let dir = target.parent().unwrap_or(Path::new("/"));
    let scratch = tempfile::tempdir_in(dir).at("create folder in", dir)?;
    let mut layers = base.to_vec();
    if !builder.files.is_empty() || layers.is_empty() {
        let path = scratch.path().join("files.tar");
        write_files(builder, &path)?;
        layers.push(Layer {
            digest: digest(&path)?,
            path,
        });
    }

    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": builder.env,
            "Entrypoint": builder.entrypoint,
            "Cmd": builder.command,
            "WorkingDir": builder.working_dir,
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|l| format!("sha256:{}", l.digest)).collect::<Vec<_>>(),
        },
    })
    .to_string();
    let config_name = format!("{}.json", crate::hex(&Sha256::digest(&config)));
    let layer_name = |l: &Layer| format!("{}/layer.tar", l.digest);
    let manifest = json!([{
        "Config": config_name,
        "RepoTags": [builder.name],
        "Layers": layers.iter().map(layer_name).collect::<Vec<_>>(),
    }])
    .to_string();

    let whole = scratch.path().join("image.tar");
    let file = File::create(&whole).at("create", &whole)?;
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
    let mut put = |name: &str, size: u64, content: &mut dyn Read| {
        let mut header = header(EntryType::Regular, 0o644, size);
        tar.append_data(&mut header, name, content).at("write", &whole)
    };
    let length = |text: &str| u64::try_from(text.len()).unwrap_or(u64::MAX);
    put("manifest.json", length(&manifest), &mut manifest.as_bytes())?;
    put(&config_name, length(&config), &mut config.as_bytes())?;
    for layer in &layers {
        let file = File::open(&layer.path).at("read", &layer.path)?;
        let size = file.metadata().at("read", &layer.path)?.len();
        put(&layer_name(layer), size, &mut BufReader::with_capacity(1 << 20, file))?;
    }
    tar.into_inner().and_then(|mut w| w.flush()).at("write", &whole)?;
    fs::rename(&whole, target).at("write", target)
}

fn write_files(builder: &Builder, path: &Path) -> Result<(), Error> {
    let file = File::create(path).at("create", path)?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    for (name, (mode, content)) in &builder.files {
        let name = name.strip_prefix("/").unwrap_or(name);
        let mut above: Vec<&Path> = name.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        for folder in above {
            // Debian's merged folders are links, which a folder would replace.
            let link = ["bin", "sbin", "lib", "lib64"].iter().any(|l| Path::new(l) == folder);
            if !link && folders.insert(folder.to_path_buf()) {
                let mut header = header(EntryType::Directory, 0o755, 0);
                let with_slash = format!("{}/", folder.display());
                tar.append_data(&mut header, with_slash, io::empty())
                    .at("write", path)?;
            }
        }
        match content {
            Content::Bytes(bytes) => {
                let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let mut header = header(EntryType::Regular, *mode, size);
                tar.append_data(&mut header, name, bytes.as_slice()).at("write", path)?;
            }
            Content::Path(from) => {
                let source = File::open(from).at("read", from)?;
                let size = source.metadata().at("read", from)?.len();
                let mut header = header(EntryType::Regular, *mode, size);
                tar.append_data(&mut header, name, source).at("write", path)?;
            }
            Content::Link(to) => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, name, to).at("write", path)?;
            }
        }
    }
    tar.into_inner().and_then(|mut w| w.flush()).at("write", path)
}

/// Owner root, time 0: the same files give the same layer.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

pub(super) fn digest(path: &Path) -> Result<String, Error> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).at("read", path)?);
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).at("read", path)?;
    Ok(crate::hex(&hash.finalize()))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
