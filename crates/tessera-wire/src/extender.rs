//! The bodies that kube-scheduler and an extender exchange.
//!
//! The names are capitalised Go names. They are read without regard to case, as Go does, and written exactly. What lies
//! below (pods, nodes) is ordinary API JSON, read exactly.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{NameList, PodView};

/// The most nodes read from one question.
pub const NODES_MAX: usize = 100_000;

/// A body that does not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// There is none.
    #[error("EOF")]
    Empty,
    /// It is not the expected JSON.
    #[error("the body does not read: {0}")]
    Json(#[from] serde_json::Error),
    /// It names more nodes than any cluster has.
    #[error("the body names more than {NODES_MAX} nodes")]
    TooManyNodes,
}

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BodyError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(BodyError::Empty);
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Struct members found by name without regard to case.
trait Members: Default {
    /// Takes the value of the member `name` (lower case) out of `map`; `false` if there is no such member.
    fn take<'de, M: MapAccess<'de>>(&mut self, name: &str, map: &mut M) -> Result<bool, M::Error>;
}

struct MembersVisitor<T>(PhantomData<T>);

impl<'de, T: Members> Visitor<'de> for MembersVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<T, M::Error> {
        let mut members = T::default();
        while let Some(name) = map.next_key::<String>()? {
            if !members.take(&name.to_ascii_lowercase(), &mut map)? {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(members)
    }
}

macro_rules! read_by_members {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(MembersVisitor(PhantomData))
            }
        }
    };
}

/// The question of filter and prioritize.
#[derive(Debug, Clone, Default)]
pub struct FilterArgs {
    /// The pod to place.
    pub pod: Option<PodView>,
    /// Whole Node objects, from a caller that keeps no nodes for us.
    pub nodes: Option<Vec<Value>>,
    /// Names of candidates.
    pub node_names: Option<NameList>,
}

#[derive(Deserialize)]
struct NodeList {
    #[serde(default)]
    items: Option<Vec<Value>>,
}

impl Members for FilterArgs {
    fn take<'de, M: MapAccess<'de>>(&mut self, name: &str, map: &mut M) -> Result<bool, M::Error> {
        match name {
            "pod" => self.pod = map.next_value()?,
            "nodes" => {
                self.nodes = map
                    .next_value::<Option<NodeList>>()?
                    .map(|list| list.items.unwrap_or_default())
            }
            "nodenames" => self.node_names = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

read_by_members!(FilterArgs);

impl FilterArgs {
    /// Reads the body.
    ///
    /// # Errors
    /// The body is empty, is not the expected JSON or names too many nodes.
    pub fn read(bytes: &[u8]) -> Result<Self, BodyError> {
        let args: Self = body(bytes)?;
        let many = |count: Option<usize>| count.is_some_and(|count| count > NODES_MAX);
        if many(args.node_names.as_ref().map(NameList::len)) || many(args.nodes.as_ref().map(Vec::len)) {
            return Err(BodyError::TooManyNodes);
        }
        Ok(args)
    }
}

/// The answer of filter. All five members are always written.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FilterResult {
    /// A NodeList of the nodes that fit, for a caller that sent Node objects.
    pub nodes: Option<Value>,
    /// The nodes that fit.
    pub node_names: Option<Vec<String>>,
    /// Why others do not fit.
    pub failed_nodes: Option<BTreeMap<String, String>>,
    /// Why others never will, so that evicting pods there is pointless.
    pub failed_and_unresolvable_nodes: Option<BTreeMap<String, String>>,
    /// A non-empty text makes the scheduling attempt an error.
    pub error: String,
}

impl FilterResult {
    /// An answer that is an error.
    #[must_use]
    pub fn error(text: impl Into<String>) -> Self {
        Self {
            error: text.into(),
            ..Self::default()
        }
    }

    /// The nodes as a NodeList.
    #[must_use]
    pub fn node_list(nodes: Vec<Value>) -> Value {
        serde_json::json!({"metadata": {}, "items": nodes})
    }
}

/// One node's score; the answer of prioritize is a bare array of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPriority {
    /// The node.
    pub host: String,
    /// 0 to 10.
    pub score: i64,
}

/// The question of bind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BindArgs {
    /// The pod's name.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its uid.
    pub pod_uid: String,
    /// The node.
    pub node: String,
}

impl Members for BindArgs {
    fn take<'de, M: MapAccess<'de>>(&mut self, name: &str, map: &mut M) -> Result<bool, M::Error> {
        let place = match name {
            "podname" => &mut self.pod_name,
            "podnamespace" => &mut self.pod_namespace,
            "poduid" => &mut self.pod_uid,
            "node" => &mut self.node,
            _ => return Ok(false),
        };
        *place = map.next_value::<Option<String>>()?.unwrap_or_default();
        Ok(true)
    }
}

read_by_members!(BindArgs);

impl BindArgs {
    /// Reads the body.
    ///
    /// # Errors
    /// The body is empty or is not the expected JSON.
    pub fn read(bytes: &[u8]) -> Result<Self, BodyError> {
        body(bytes)
    }
}

/// The answer of bind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BindResult {
    /// Empty if the pod is bound.
    pub error: String,
}

/// A pod that might be evicted.
#[derive(Debug, Clone)]
pub struct Victim {
    /// Its uid.
    pub uid: String,
    /// The object, from a caller that keeps no nodes for us.
    pub view: Option<PodView>,
}

/// The victims proposed for one node.
#[derive(Debug, Clone, Default)]
pub struct Victims {
    /// Who.
    pub pods: Vec<Victim>,
    /// How many disruption budgets they break.
    pub pdb_violations: i64,
}

/// The question of preempt.
#[derive(Debug, Clone, Default)]
pub struct PreemptArgs {
    /// The pod that wants a place.
    pub pod: Option<PodView>,
    /// Victims by node, from whichever of the two members was given.
    pub victims: BTreeMap<String, Victims>,
}

#[derive(Default)]
struct WireMetaPod(String);

impl Members for WireMetaPod {
    fn take<'de, M: MapAccess<'de>>(&mut self, name: &str, map: &mut M) -> Result<bool, M::Error> {
        if name != "uid" {
            return Ok(false);
        }
        self.0 = map.next_value()?;
        Ok(true)
    }
}

read_by_members!(WireMetaPod);

struct WireVictims<P> {
    pods: Vec<P>,
    violations: i64,
}

impl<P> Default for WireVictims<P> {
    fn default() -> Self {
        Self {
            pods: Vec::new(),
            violations: 0,
        }
    }
}

impl<P: DeserializeOwned> Members for WireVictims<P> {
    fn take<'de, M: MapAccess<'de>>(&mut self, name: &str, map: &mut M) -> Result<bool, M::Error> {
        match name {
            "pods" => self.pods = map.next_value::<Option<Vec<P>>>()?.unwrap_or_default(),
            "numpdbviolations" => self.violations = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl<'de, P: DeserializeOwned> Deserialize<'de> for WireVictims<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

impl Members for PreemptArgs {
    fn take<'de, M: MapAccess<'de>>(&mut self, name: &str, map: &mut M) -> Result<bool, M::Error> {
        match name {
            "pod" => self.pod = map.next_value()?,
            "nodenametovictims" => {
                let nodes: Option<BTreeMap<String, WireVictims<PodView>>> = map.next_value()?;
                for (node, victims) in nodes.unwrap_or_default() {
                    let pods = victims
                        .pods
                        .into_iter()
                        .map(|view| Victim {
                            uid: view.id.uid.to_string(),
                            view: Some(view),
                        })
                        .collect();
                    self.victims.insert(
                        node,
                        Victims {
                            pods,
                            pdb_violations: victims.violations,
                        },
                    );
                }
            }
            "nodenametometavictims" => {
                let nodes: Option<BTreeMap<String, WireVictims<WireMetaPod>>> = map.next_value()?;
                for (node, victims) in nodes.unwrap_or_default() {
                    let pods = victims
                        .pods
                        .into_iter()
                        .map(|pod| Victim { uid: pod.0, view: None })
                        .collect();
                    self.victims.insert(
                        node,
                        Victims {
                            pods,
                            pdb_violations: victims.violations,
                        },
                    );
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

read_by_members!(PreemptArgs);

impl PreemptArgs {
    /// Reads the body.
    ///
    /// # Errors
    /// The body is empty, is not the expected JSON or names too many nodes.
    pub fn read(bytes: &[u8]) -> Result<Self, BodyError> {
        let args: Self = body(bytes)?;
        if args.victims.len() > NODES_MAX {
            Err(BodyError::TooManyNodes)
        } else {
            Ok(args)
        }
    }
}

/// A victim in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MetaPod {
    /// Its uid.
    #[serde(rename = "UID")]
    pub uid: String,
}

/// The victims chosen on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MetaVictims {
    /// Who; never empty, which would fail the whole preemption.
    #[serde(rename = "Pods")]
    pub pods: Vec<MetaPod>,
    /// How many disruption budgets they break.
    #[serde(rename = "NumPDBViolations")]
    pub pdb_violations: i64,
}

/// The answer of preempt. A node left out cannot be freed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PreemptResult {
    /// Victims by node.
    #[serde(rename = "NodeNameToMetaVictims")]
    pub victims: BTreeMap<String, MetaVictims>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_written_exactly() {
        let args =
            FilterArgs::read(br#"{"pOD":{"metadata":{"name":"p"}},"nodenames":["n1"],"NODES":null,"x":[1]}"#).unwrap();
        assert_eq!(args.pod.unwrap().id.name, "p");
        assert!(args.node_names.unwrap().iter().eq(["n1"]));
        assert!(args.nodes.is_none());
        let result = FilterResult {
            node_names: Some(vec!["n1".to_owned()]),
            ..FilterResult::default()
        };
        assert_eq!(
            serde_json::to_string(&result).unwrap(),
            r#"{"Nodes":null,"NodeNames":["n1"],"FailedNodes":null,"FailedAndUnresolvableNodes":null,"Error":""}"#
        );
        let bind = BindArgs::read(br#"{"podname":"p","PodNamespace":"d","PodUID":"u","Node":"n1"}"#).unwrap();
        assert_eq!((bind.pod_name.as_str(), bind.node.as_str()), ("p", "n1"));
        assert_eq!(
            serde_json::to_string(&BindResult::default()).unwrap(),
            r#"{"Error":""}"#
        );
        assert_eq!(
            serde_json::to_string(&[HostPriority {
                host: "n1".to_owned(),
                score: 7
            }])
            .unwrap(),
            r#"[{"Host":"n1","Score":7}]"#
        );
    }

    #[test]
    fn both_forms_of_preempt_are_read() {
        let meta = PreemptArgs::read(
            br#"{"Pod":{"metadata":{"name":"p"}},"NodeNameToVictims":null,"NodeNameToMetaVictims":{"n1":{"Pods":[{"UID":"u1"}],"NumPDBViolations":2}}}"#,
        )
        .unwrap();
        assert_eq!(
            (
                meta.victims["n1"].pods[0].uid.as_str(),
                meta.victims["n1"].pdb_violations
            ),
            ("u1", 2)
        );
        let whole = PreemptArgs::read(
            br#"{"NodeNameToVictims":{"n1":{"Pods":[{"metadata":{"name":"v","uid":"u2"}}],"NumPDBViolations":0}}}"#,
        )
        .unwrap();
        assert_eq!(whole.victims["n1"].pods[0].uid, "u2");
        let answer = PreemptResult {
            victims: BTreeMap::from([(
                "n1".to_owned(),
                MetaVictims {
                    pods: vec![MetaPod { uid: "u1".to_owned() }],
                    pdb_violations: 0,
                },
            )]),
        };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"NodeNameToMetaVictims":{"n1":{"Pods":[{"UID":"u1"}],"NumPDBViolations":0}}}"#
        );
    }

    #[test]
    fn an_empty_body_is_told_apart() {
        assert_eq!(FilterArgs::read(b"").unwrap_err().to_string(), "EOF");
        assert!(matches!(FilterArgs::read(b"{not-json"), Err(BodyError::Json(_))));
        assert!(matches!(FilterArgs::read(b"[]"), Err(BodyError::Json(_))));
    }
}
