//! The kubelet's device checkpoint: the one place that ties pod UID, container
//! (init containers included), device ids and the exact Allocate answer
//! together.
//!
//! The file is not an API, though its shape has been stable for years. It is
//! read, never written; fields that are missing or new are tolerated.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::Deserialize;

use crate::proto::deviceplugin_v1beta1::ContainerAllocateResponse;

/// File name inside the device plugin folder.
pub const FILE_NAME: &str = "kubelet_internal_checkpoint";

/// Upper bound of what is read. A node with 65,000 slots writes a few MiB.
const BYTES_MAX: u64 = 64 << 20;

/// One container's devices of one resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the container, init containers included.
    pub container: String,
    /// Extended resource name.
    pub resource: String,
    /// Ids over all NUMA nodes.
    pub device_ids: BTreeSet<String>,
    /// The plugin's answer as the kubelet recorded it; `None` when the record
    /// has none that decodes.
    pub response: Option<ContainerAllocateResponse>,
}

/// The parsed file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checkpoint {
    /// In file order.
    pub entries: Vec<Entry>,
    /// Ids that the kubelet knows for each resource.
    pub registered: BTreeMap<String, BTreeSet<String>>,
}

/// Why the checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file is there and cannot be read.
    #[error("cannot read the kubelet checkpoint {path}")]
    Read {
        /// Path of the file.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// The text is not the JSON we know.
    #[error("the kubelet checkpoint does not parse")]
    Parse(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "Data")]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "PodDeviceEntries", default)]
    entries: Option<Vec<RawEntry>>,
    #[serde(rename = "RegisteredDevices", default)]
    registered: Option<BTreeMap<String, Option<BTreeSet<String>>>>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(rename = "PodUID", default)]
    pod_uid: String,
    #[serde(rename = "ContainerName", default)]
    container: String,
    #[serde(rename = "ResourceName", default)]
    resource: String,
    #[serde(rename = "DeviceIDs", default)]
    device_ids: Option<DeviceIds>,
    #[serde(rename = "AllocResp", default)]
    response: Option<String>,
}

// Kubelets before 1.20 wrote a plain list.
#[derive(Deserialize)]
#[serde(untagged)]
enum DeviceIds {
    PerNuma(BTreeMap<String, Option<Vec<String>>>),
    Flat(Vec<String>),
}

impl Checkpoint {
    /// Reads the file in `plugin_dir`. A kubelet that has not written one yet
    /// gives `Ok(None)`.
    ///
    /// # Errors
    /// When the file exists and cannot be read or parsed.
    pub fn read(plugin_dir: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = plugin_dir.join(FILE_NAME);
        let failed = |source| CheckpointError::Read {
            path: path.display().to_string(),
            source,
        };
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
        Self::parse(&text).map(Some)
    }

    /// Parses the text of the file.
    ///
    /// # Errors
    /// When the text is not JSON of the known shape.
    pub fn parse(text: &[u8]) -> Result<Self, CheckpointError> {
        let file: File = serde_json::from_slice(text)?;
        let Some(data) = file.data else {
            return Ok(Self::default());
        };
        let entries = data
            .entries
            .unwrap_or_default()
            .into_iter()
            .map(Entry::from_raw)
            .collect();
        let registered = data
            .registered
            .unwrap_or_default()
            .into_iter()
            .map(|(resource, ids)| (resource, ids.unwrap_or_default()))
            .collect();
        Ok(Self { entries, registered })
    }

    /// Entries of `resource`, in file order.
    pub fn of_resource<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.resource == resource)
    }
}

impl Entry {
    fn from_raw(raw: RawEntry) -> Self {
        let device_ids = match raw.device_ids {
            None => BTreeSet::new(),
            Some(DeviceIds::Flat(ids)) => ids.into_iter().collect(),
            Some(DeviceIds::PerNuma(nodes)) => nodes.into_values().flatten().flatten().collect(),
        };
        let response = raw
            .response
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|bytes| ContainerAllocateResponse::decode(bytes.as_slice()).ok());
        Self {
            pod_uid: raw.pod_uid,
            container: raw.container,
            resource: raw.resource,
            device_ids,
            response,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_all_numa_nodes_are_joined_and_the_answer_decodes() {
        let answer = ContainerAllocateResponse {
            envs: [("A".to_owned(), "1".to_owned())].into(),
            ..ContainerAllocateResponse::default()
        };
        let text = format!(
            r#"{{"Data":{{"PodDeviceEntries":[{{"PodUID":"u","ContainerName":"c","ResourceName":"nvidia.com/gpu",
            "DeviceIDs":{{"-1":["a-0"],"1":["b-3"]}},"AllocResp":"{}"}}],
            "RegisteredDevices":{{"nvidia.com/gpu":["a-0","b-3"],"x/y":null}}}},"Checksum":7}}"#,
            STANDARD.encode(answer.encode_to_vec())
        );
        let checkpoint = Checkpoint::parse(text.as_bytes()).unwrap();
        let entry = checkpoint.of_resource("nvidia.com/gpu").next().unwrap();
        assert_eq!(entry.device_ids, ["a-0".to_owned(), "b-3".to_owned()].into());
        assert_eq!(entry.response, Some(answer));
        assert_eq!(checkpoint.registered["x/y"], BTreeSet::new());
    }

    #[test]
    fn null_lists_and_undecodable_answers_are_tolerated() {
        let text = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r",
            "DeviceIDs":null,"AllocResp":"!"}],"RegisteredDevices":null},"Checksum":1}"#;
        let checkpoint = Checkpoint::parse(text.as_bytes()).unwrap();
        assert_eq!(checkpoint.entries[0].response, None);
        assert_eq!(Checkpoint::parse(br#"{"Data":null}"#).unwrap(), Checkpoint::default());
        assert!(Checkpoint::parse(b"{").is_err());
    }

    #[test]
    fn an_absent_file_is_not_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::read(folder.path()).unwrap(), None);
    }
}
