//! What the engine relies on for every class.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use serde_json::{Map, Value, json};
use tessera_wire::PodView;
use tessera_wire::config::DeviceConfig;

/// The engine asks a class only of a container that names one of its resources.
#[test]
fn a_class_is_asked_by_its_own_resource_names_alone() {
    let config = DeviceConfig::from_yaml(include_str!("suite/config.yaml")).unwrap();
    let vendors = tessera_vendors::from_config(&config);
    assert!(vendors.iter().len() >= 20);
    for vendor in vendors.iter() {
        let own: Vec<&str> = vendor.names().managed().collect();
        assert!(!own.is_empty(), "{} has no resource", vendor.keyword());
        let others = vendors.iter().flat_map(|other| other.names().managed());
        let mut limits: Map<String, Value> = others
            .filter(|name| !own.contains(name))
            .map(|name| (name.to_owned(), json!("1")))
            .collect();
        // Names that look like the class's own.
        for name in &own {
            limits.insert(format!("{name}x"), json!("1"));
        }
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": limits, "requests": limits}}]}});
        let pod = PodView::from_json(&pod).unwrap();
        let asked = vendor.parse(pod.containers.first().unwrap(), &pod);
        assert_eq!(asked, Ok(None), "{}", vendor.keyword());
    }
}
