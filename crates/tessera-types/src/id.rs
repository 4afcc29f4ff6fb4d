//! Names of things. Cheap to clone, ordered, and free of the separators that the wire texts use.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A text that cannot be an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("an empty {what} is not allowed")]
    Empty {
        /// What the text was to name.
        what: &'static str,
    },
    /// The text has a character that separates fields in the device texts.
    #[error("{what} `{text}` contains `{found}`, which separates fields in the device text")]
    Separator {
        /// What the text was to name.
        what: &'static str,
        /// The whole text.
        text: String,
        /// The character found.
        found: char,
    },
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $separators:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is.
            ///
            /// # Errors
            /// The text is empty or holds a separator of the device texts.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                if text.is_empty() {
                    return Err(IdError::Empty { what: $what });
                }
                let separators: &[char] = &$separators;
                if let Some(found) = text.chars().find(|c| separators.contains(c)) {
                    return Err(IdError::Separator { what: $what, text: text.to_owned(), found });
                }
                Ok(Self(Arc::from(text)))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = IdError;
            fn try_from(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// The stable identifier of a card, such as `GPU-3f1c...`. Opaque: only equality has a meaning.
    CardId, "card id", [',', ':', ';']
);
text_id!(
    /// The fixed text that keys a device class: `NVIDIA`, `DCU`, `Ascend910B3`.
    Keyword, "vendor keyword", [',', ':', ';']
);
text_id!(
    /// The name of a Kubernetes node.
    NodeName, "node name", []
);
text_id!(
    /// The uid that the API server gave to a pod.
    PodUid, "pod uid", []
);

/// Which pod: the uid decides identity, namespace and name are for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId {
    /// Namespace.
    pub namespace: String,
    /// Name inside the namespace.
    pub name: String,
    /// Uid; two pods of one name after each other differ in it.
    pub uid: PodUid,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
