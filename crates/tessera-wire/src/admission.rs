//! AdmissionReview, both versions, and the JSON Patch inside its answer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::pod::nullable;

/// The version of a review. The answer is given in the version of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReviewVersion {
    /// `admission.k8s.io/v1`.
    #[default]
    V1,
    /// `admission.k8s.io/v1beta1`, which HAMi's webhook configuration asks for.
    V1beta1,
}

impl ReviewVersion {
    /// The `apiVersion` text.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// A body that is no review. `version` and `uid` are what could still be read, for the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ReviewError {
    /// In which version to answer.
    pub version: ReviewVersion,
    /// Which question to answer; empty if unknown.
    pub uid: String,
    /// HTTP-like code of the answer.
    pub code: u16,
    /// What is wrong.
    pub text: String,
}

/// One question of the API server.
#[derive(Debug, Clone)]
pub struct Review {
    /// In which version to answer.
    pub version: ReviewVersion,
    /// Echoed in the answer.
    pub uid: String,
    /// `CREATE`, `UPDATE`, ...
    pub operation: String,
    /// Namespace of the request.
    pub namespace: String,
    /// Name of the object; may be empty at creation.
    pub name: String,
    /// Kind of the object.
    pub kind: String,
    /// Sub-resource, empty for the object itself.
    pub sub_resource: String,
    /// The object as sent, with all that this version does not know. `Null` if absent.
    pub object: Value,
    /// The object before, for `UPDATE` and `DELETE`. `Null` if absent.
    pub old_object: Value,
    /// Who asks.
    pub user: String,
    /// Their groups.
    pub groups: Vec<String>,
    /// Nothing may be remembered of the request.
    pub dry_run: bool,
}

#[derive(Deserialize)]
struct WireReview {
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    #[serde(default)]
    request: Option<WireRequest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireRequest {
    #[serde(deserialize_with = "nullable")]
    uid: String,
    #[serde(deserialize_with = "nullable")]
    kind: WireKind,
    #[serde(deserialize_with = "nullable")]
    sub_resource: String,
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    namespace: String,
    #[serde(deserialize_with = "nullable")]
    operation: String,
    #[serde(deserialize_with = "nullable")]
    user_info: WireUser,
    object: Value,
    old_object: Value,
    dry_run: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireKind {
    kind: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireUser {
    #[serde(deserialize_with = "nullable")]
    username: String,
    #[serde(deserialize_with = "nullable")]
    groups: Vec<String>,
}

impl Review {
    /// Reads the body.
    ///
    /// # Errors
    /// The body is empty, is no review of a known version, or holds no request.
    pub fn read(bytes: &[u8]) -> Result<Self, ReviewError> {
        let bad = |text: String| ReviewError {
            version: ReviewVersion::V1,
            uid: String::new(),
            code: 400,
            text,
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(bad("the request body is empty".to_owned()));
        }
        let review: WireReview =
            serde_json::from_slice(bytes).map_err(|error| bad(format!("the body is no AdmissionReview: {error}")))?;
        let version = match review.api_version.as_str() {
            "" | "admission.k8s.io/v1" => ReviewVersion::V1,
            "admission.k8s.io/v1beta1" => ReviewVersion::V1beta1,
            other => {
                return Err(bad(format!(
                    "AdmissionReview version `{other}` is not known; v1 and v1beta1 of admission.k8s.io are"
                )));
            }
        };
        let Some(request) = review.request else {
            return Err(ReviewError {
                version,
                ..bad("the AdmissionReview has no request".to_owned())
            });
        };
        Ok(Self {
            version,
            uid: request.uid,
            operation: request.operation,
            namespace: request.namespace,
            name: request.name,
            kind: request.kind.kind,
            sub_resource: request.sub_resource,
            object: request.object,
            old_object: request.old_object,
            user: request.user_info.username,
            groups: request.user_info.groups,
            dry_run: request.dry_run.unwrap_or(false),
        })
    }
}

/// One operation of a JSON Patch (RFC 6902).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum PatchOp {
    /// Sets a member, or inserts into a list (`-` at the end of the path appends).
    Add {
        /// JSON pointer.
        path: String,
        /// The new value.
        value: Value,
    },
    /// Sets a member that exists.
    Replace {
        /// JSON pointer.
        path: String,
        /// The new value.
        value: Value,
    },
    /// Removes a member that exists.
    Remove {
        /// JSON pointer.
        path: String,
    },
    /// Fails the patch unless the value is as given.
    Test {
        /// JSON pointer.
        path: String,
        /// The expected value.
        value: Value,
    },
}

/// A JSON pointer of these parts, escaped.
#[must_use]
pub fn pointer(parts: &[&str]) -> String {
    parts.iter().fold(String::new(), |mut pointer, part| {
        pointer.push('/');
        pointer.push_str(&part.replace('~', "~0").replace('/', "~1"));
        pointer
    })
}

/// The answer to a review.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether the request goes on.
    pub allowed: bool,
    /// HTTP-like code, 200 when allowed.
    pub code: u16,
    /// For the user; empty for none.
    pub message: String,
    /// Changes to the object; empty for none.
    pub patch: Vec<PatchOp>,
    /// Shown to the user by kubectl. Only version 1 carries them.
    pub warnings: Vec<String>,
}

/// The longest single warning. The API server cuts at 256 characters when there are many.
pub const WARNING_CHARS_MAX: usize = 256;
/// The most warnings of one answer.
pub const WARNINGS_MAX: usize = 16;

impl Answer {
    /// Goes on, with these changes.
    #[must_use]
    pub fn allow(patch: Vec<PatchOp>) -> Self {
        Self {
            allowed: true,
            code: 200,
            message: String::new(),
            patch,
            warnings: Vec::new(),
        }
    }

    /// Does not go on.
    #[must_use]
    pub fn deny(code: u16, message: impl Into<String>) -> Self {
        Self {
            allowed: false,
            code,
            message: message.into(),
            patch: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The AdmissionReview with this answer. `version` is `None` if the question was not even read as JSON.
    #[must_use]
    pub fn print(&self, version: Option<ReviewVersion>, uid: &str) -> Value {
        let mut status = Map::from_iter([
            ("metadata".to_owned(), json!({})),
            ("code".to_owned(), json!(self.code)),
        ]);
        if !self.message.is_empty() {
            status.insert("message".to_owned(), json!(self.message));
        }
        if !self.allowed {
            status.insert("reason".to_owned(), json!(reason(self.code)));
        }
        let mut response = Map::from_iter([
            ("uid".to_owned(), json!(uid)),
            ("allowed".to_owned(), json!(self.allowed)),
            ("status".to_owned(), Value::Object(status)),
        ]);
        if self.allowed && !self.patch.is_empty() {
            let patch = serde_json::to_vec(&self.patch).unwrap_or_default();
            response.insert("patchType".to_owned(), json!("JSONPatch"));
            response.insert("patch".to_owned(), json!(base64(&patch)));
        }
        if !self.warnings.is_empty() && version != Some(ReviewVersion::V1beta1) {
            let warnings: Vec<String> = self
                .warnings
                .iter()
                .take(WARNINGS_MAX)
                .map(|warning| warning.chars().take(WARNING_CHARS_MAX).collect())
                .collect();
            response.insert("warnings".to_owned(), json!(warnings));
        }
        let mut review = Map::new();
        if let Some(version) = version {
            review.insert("kind".to_owned(), json!("AdmissionReview"));
            review.insert("apiVersion".to_owned(), json!(version.api_version()));
        }
        review.insert("response".to_owned(), Value::Object(response));
        Value::Object(review)
    }
}

fn reason(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        403 => "Forbidden",
        413 => "RequestEntityTooLarge",
        422 => "Invalid",
        _ => "InternalError",
    }
}

/// Base64 with padding, as JSON carries bytes.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = (at(0) << 16) | (at(1) << 8) | at(2);
        for (position, shift) in [18u32, 12, 6, 0].into_iter().enumerate() {
            let letter = LETTERS.get((word >> shift) as usize & 63).copied().unwrap_or(b'=');
            text.push(if position <= chunk.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\u{ff}\u{3fff}", "w7/jv78="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn pointers_escape() {
        assert_eq!(
            pointer(&["metadata", "annotations", "a/b~c"]),
            "/metadata/annotations/a~1b~0c"
        );
    }

    #[test]
    fn the_answer_has_the_version_of_the_question() {
        let review = Review::read(
            br#"{"apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"a","object":{"spec":{"x":1}}}}"#,
        )
        .unwrap();
        let answer = Answer::allow(vec![PatchOp::Add {
            path: "/a".to_owned(),
            value: json!(1),
        }]);
        let printed = answer.print(Some(review.version), &review.uid);
        assert_eq!(printed["apiVersion"], "admission.k8s.io/v1beta1");
        assert_eq!(
            printed["response"]["patch"],
            base64(br#"[{"op":"add","path":"/a","value":1}]"#)
        );
        assert!(Review::read(b"").unwrap_err().code == 400);
        assert!(Review::read(br#"{"apiVersion":"admission.k8s.io/v7","request":{}}"#).is_err());
    }
}
