//! The API server's own record of every request: what the costs of a
//! component at the API are counted by.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Error, IoContext};

/// One request, as the API server recorded it when it was done.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct AuditEvent {
    /// `ResponseComplete`, or `ResponseStarted` for a watch that goes on.
    pub stage: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` ...
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Who asked.
    #[serde(default)]
    pub user: AuditUser,
    /// The client's own name for itself.
    #[serde(default)]
    pub user_agent: String,
    /// What it was about; `None` for paths that are no resource.
    pub object_ref: Option<AuditObject>,
    /// The answer; `None` while a watch goes on.
    pub response_status: Option<AuditStatus>,
}

/// The user of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct AuditUser {
    /// For a service account `system:serviceaccount:<namespace>:<name>`.
    #[serde(default)]
    pub username: String,
}

/// The object of a request; empty where the request names none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AuditObject {
    /// Plural: `pods`.
    pub resource: String,
    /// For example `binding` or `status`.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The answer's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct AuditStatus {
    /// HTTP status code.
    #[serde(default)]
    pub code: u16,
}

impl AuditEvent {
    /// Whether the request wrote, or tried to.
    pub fn is_write(&self) -> bool {
        matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        )
    }

    /// `verb resource` or `verb resource/subresource`: `create pods/binding`.
    pub fn what(&self) -> String {
        match &self.object_ref {
            None => format!("{} {}", self.verb, self.request_uri),
            Some(o) if o.subresource.is_empty() => format!("{} {}", self.verb, o.resource),
            Some(o) => format!("{} {}/{}", self.verb, o.resource, o.subresource),
        }
    }
}

/// A place in the audit log.
#[derive(Clone, Copy, Debug)]
pub struct AuditMark(u64);

/// Reader of the audit log. The log is written before a request is answered,
/// so what a client was told is in it.
#[derive(Clone, Debug)]
pub struct AuditLog {
    path: PathBuf,
}

impl AuditLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The end of the log now.
    pub fn mark(&self) -> AuditMark {
        AuditMark(std::fs::metadata(&self.path).map_or(0, |m| m.len()))
    }

    /// All requests that were finished after a mark, oldest first.
    ///
    /// # Errors
    /// When the log cannot be read or holds something else than audit events.
    pub fn since(&self, mark: AuditMark) -> Result<Vec<AuditEvent>, Error> {
        let mut file = File::open(&self.path).at("read", &self.path)?;
        file.seek(SeekFrom::Start(mark.0)).at("read", &self.path)?;
        let mut reader = BufReader::new(file);
        let mut events = Vec::new();
        let mut line = String::new();
        while reader.read_line(&mut line).at("read", &self.path)? > 0 {
            // The last line may still be in the writing.
            if line.ends_with('\n') {
                let event = serde_json::from_str(&line).map_err(|e| Error::Config {
                    what: "audit log",
                    reason: e.to_string(),
                })?;
                events.push(event);
            }
            line.clear();
        }
        Ok(events)
    }

    /// The number of requests after a mark for which `which` says yes.
    ///
    /// # Errors
    /// As for [`AuditLog::since`].
    pub fn count_since(&self, mark: AuditMark, which: impl Fn(&AuditEvent) -> bool) -> Result<usize, Error> {
        Ok(self.since(mark)?.iter().filter(|e| which(e)).count())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;

    #[test]
    fn events_after_a_mark_are_read_and_an_unfinished_line_is_not() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let log = AuditLog::new(file.path().to_path_buf());
        writeln!(
            file,
            r#"{{"stage":"ResponseComplete","verb":"get","requestURI":"/version"}}"#
        )
        .unwrap();
        let mark = log.mark();
        let binding = json!({
            "kind": "Event",
            "stage": "ResponseComplete",
            "requestURI": "/api/v1/namespaces/a/pods/p/binding",
            "verb": "create",
            "user": {"username": "system:kube-scheduler", "groups": ["x"]},
            "objectRef": {"resource": "pods", "namespace": "a", "name": "p",
                "apiVersion": "v1", "subresource": "binding"},
            "responseStatus": {"metadata": {}, "code": 201},
        });
        writeln!(file, "{binding}").unwrap();
        write!(file, "{{\"stage\":\"Resp").unwrap();
        let events = log.since(mark).unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].what(), "create pods/binding");
        assert!(events[0].is_write());
        assert_eq!(events[0].user.username, "system:kube-scheduler");
        assert_eq!(events[0].response_status.as_ref().unwrap().code, 201);
        let all = log.count_since(AuditMark(0), |e| !e.is_write()).unwrap();
        assert_eq!(all, 1);
    }
}
