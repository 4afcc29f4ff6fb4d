//! The Helm chart as an operator meets it: what it renders, what it asks of the cluster and of the node, and what
//! it says to a wrong value.
//!
//! Needs `helm`: from `TESSERA_HELM`, the path, or the cache that `cargo xtask up` fills. Without it each test says
//! "skipped". `TESSERA_BLESS=1` writes the golden files anew.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tessera_e2e::{harness, product};
use tessera_wire::config::DeviceConfig;

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart")
}

/// The helm to use, or why there is none.
fn helm() -> Result<PathBuf, String> {
    if let Some(given) = std::env::var_os("TESSERA_HELM") {
        return Ok(given.into());
    }
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("helm"));
    let cache = std::env::var_os("TESSERA_CACHE").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cache/tessera"))
    });
    let cached = cache
        .and_then(|cache| std::fs::read_dir(cache.join("bin")).ok())
        .into_iter()
        .flat_map(|entries| entries.filter_map(Result::ok))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("helm-"))
        .map(|entry| entry.path().join("helm"));
    on_path
        .chain(cached)
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| "no helm found".to_owned())
}

/// Runs helm in the repository; `None`, with a note, where there is no helm.
fn run(args: &[&str]) -> Option<Output> {
    match helm() {
        Ok(helm) => Some(
            Command::new(helm)
                .current_dir(product::root())
                .args(args)
                .output()
                .unwrap(),
        ),
        Err(reason) => {
            println!("skipped: {reason}");
            harness::note_skip("chart", &reason);
            None
        }
    }
}

/// Renders the chart with further arguments of `helm template`.
fn render(more: &[&str]) -> Option<String> {
    let mut args = vec!["template", "tessera", "charts/tessera", "--namespace", "tessera-system"];
    if !more.contains(&"--kube-version") {
        args.extend(["--kube-version", "1.36.3"]);
    }
    args.extend(more);
    let output = run(&args)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The objects of a rendering.
fn objects(rendered: &str) -> Vec<Value> {
    rendered
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document.trim_start_matches("---\n")).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn data(objects: &[Value], config_map: &str, key: &str) -> Value {
    let text = find(objects, "ConfigMap", config_map)["data"][key].as_str().unwrap();
    serde_saphyr::from_str(text).unwrap()
}

fn container<'a>(workload: &'a Value, name: &str) -> &'a Value {
    workload["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|container| container["name"] == name)
        .unwrap_or_else(|| panic!("no container {name}"))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array()
        .map(|items| items.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

// ---------------------------------------------------------------- golden files

fn check_golden(name: &str, more: &[&str]) {
    let values = golden_folder().join(format!("{name}.values.yaml"));
    let values = values.to_str().unwrap();
    let mut args = more.to_vec();
    if Path::new(values).exists() {
        args.extend(["--values", values]);
    }
    let Some(rendered) = render(&args) else { return };
    let golden = golden_folder().join(format!("{name}.yaml"));
    if std::env::var_os("TESSERA_BLESS").is_some() {
        std::fs::write(&golden, rendered).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    let difference = rendered
        .lines()
        .zip(expected.lines())
        .position(|(ours, theirs)| ours != theirs);
    let line = difference.unwrap_or_else(|| rendered.lines().count().min(expected.lines().count()));
    assert!(
        rendered == expected,
        "{} differs from line {}:\n  rendered: {:?}\n  golden:   {:?}\nIf that is meant: TESSERA_BLESS=1 cargo test -p tessera-e2e --test chart",
        golden.display(),
        line + 1,
        rendered.lines().nth(line),
        expected.lines().nth(line),
    );
}

#[test]
fn default_values_render_as_recorded() {
    check_golden("default", &[]);
}

#[test]
fn several_replicas_render_as_recorded() {
    check_golden("ha", &[]);
}

#[test]
fn simulated_cards_render_as_recorded() {
    check_golden("simulate", &[]);
}

#[test]
fn players_render_as_recorded() {
    check_golden("players", &[]);
}

#[test]
fn values_of_hami_render_as_recorded() {
    check_golden("hami", &["--kube-version", "1.31.2+k3s1"]);
}

#[test]
fn two_renderings_are_the_same() {
    let Some(first) = render(&[]) else { return };
    let second = render(&[]).unwrap();
    assert!(
        first == second,
        "the chart renders something random, so every upgrade restarts everything"
    );
}

#[test]
fn lint_finds_nothing() {
    for values in [None, Some("ha"), Some("simulate"), Some("hami")] {
        let file = values.map(|name| golden_folder().join(format!("{name}.values.yaml")));
        let mut args = vec!["lint", "--strict", "charts/tessera"];
        if let Some(file) = &file {
            args.extend(["--values", file.to_str().unwrap()]);
        }
        let Some(output) = run(&args) else { return };
        assert!(
            output.status.success(),
            "{values:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

// ---------------------------------------------------------------- what it asks of the cluster

/// Every right of an account's roles, as `verb resource[/names]`.
fn rights(objects: &[Value], kind: &str, name: &str) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for rule in find(objects, kind, name)["rules"].as_array().into_iter().flatten() {
        let names = texts(&rule["resourceNames"]).join(",");
        for resource in texts(&rule["resources"]) {
            for verb in texts(&rule["verbs"]) {
                let only = if names.is_empty() {
                    String::new()
                } else {
                    format!(" only {names}")
                };
                rights.insert(format!("{verb} {resource}{only}"));
            }
        }
    }
    rights
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}

#[test]
fn rights_are_these_and_no_others() {
    let Some(rendered) = render(&[]) else { return };
    let objects = objects(&rendered);
    assert_eq!(
        rights(&objects, "ClusterRole", "tessera-scheduler"),
        set(&[
            "get pods",
            "list pods",
            "watch pods",
            "patch pods",
            "create pods/binding",
            "get nodes",
            "list nodes",
            "watch nodes",
            "patch nodes",
            "get resourcequotas",
            "list resourcequotas",
            "watch resourcequotas",
            "create events",
            "get events",
            "patch events",
            "get mutatingwebhookconfigurations only tessera-webhook",
            "patch mutatingwebhookconfigurations only tessera-webhook",
            "get validatingwebhookconfigurations only tessera-webhook",
            "patch validatingwebhookconfigurations only tessera-webhook",
        ])
    );
    let leases = "leases only hami-scheduler,hami-scheduler-extender";
    let secret = "secrets only tessera-webhook-tls";
    let verbs = ["get", "list", "watch", "update", "patch"];
    let expected = verbs
        .iter()
        .flat_map(|verb| [format!("{verb} {leases}"), format!("{verb} {secret}")])
        .collect();
    assert_eq!(rights(&objects, "Role", "tessera-scheduler"), expected);
    assert_eq!(
        rights(&objects, "ClusterRole", "tessera-device-plugin-monitor"),
        set(&[
            "get pods",
            "list pods",
            "watch pods",
            "patch pods",
            "get nodes",
            "list nodes",
            "watch nodes",
            "patch nodes",
            "create events",
            "get events",
            "patch events",
        ])
    );
    let roles: BTreeSet<&str> = objects
        .iter()
        .filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding"))
        .map(|binding| binding["roleRef"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        roles,
        BTreeSet::from([
            "extension-apiserver-authentication-reader",
            "system:kube-scheduler",
            "system:volume-scheduler",
            "tessera-device-plugin-monitor",
            "tessera-scheduler",
        ])
    );
}

#[test]
fn rights_shrink_with_the_features() {
    let Some(rendered) = render(&[
        "--set",
        "scheduler.foreignPlugins=false,scheduler.admissionWebhook.enabled=false,scheduler.leaderElect=false,scheduler.kubeScheduler.enabled=false",
    ]) else {
        return;
    };
    let objects = objects(&rendered);
    let scheduler = rights(&objects, "ClusterRole", "tessera-scheduler");
    assert!(!scheduler.contains("patch nodes"), "{scheduler:?}");
    assert!(
        !scheduler.iter().any(|right| right.contains("webhook")),
        "{scheduler:?}"
    );
    assert_eq!(rights(&objects, "Role", "tessera-scheduler"), BTreeSet::new());
    assert!(
        !objects
            .iter()
            .any(|object| object["roleRef"]["name"] == "system:kube-scheduler")
    );
    for kind in [
        "Secret",
        "Lease",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ] {
        assert!(!objects.iter().any(|object| object["kind"] == kind), "{kind} is left");
    }
}

#[test]
fn webhooks_cannot_hold_up_the_cluster() {
    let Some(rendered) = render(&[]) else { return };
    let objects = objects(&rendered);
    for (kind, operation) in [
        ("MutatingWebhookConfiguration", "CREATE"),
        ("ValidatingWebhookConfiguration", "UPDATE"),
    ] {
        let hooks = find(&objects, kind, "tessera-webhook")["webhooks"].as_array().unwrap();
        assert_eq!(hooks.len(), 1);
        let hook = &hooks[0];
        assert_eq!(hook["failurePolicy"], "Ignore");
        assert!(hook["timeoutSeconds"].as_i64().unwrap() <= 5);
        assert_eq!(
            texts(&hook["rules"][0]["resources"]),
            ["pods"],
            "only pods, no subresource"
        );
        assert_eq!(texts(&hook["rules"][0]["operations"]), [operation]);
        let away = hook["namespaceSelector"]["matchExpressions"].as_array().unwrap();
        let away: BTreeMap<&str, Vec<&str>> = away
            .iter()
            .map(|rule| (rule["key"].as_str().unwrap(), texts(&rule["values"])))
            .collect();
        assert_eq!(away["kubernetes.io/metadata.name"], ["kube-system", "tessera-system"]);
        assert_eq!(away["hami.io/webhook"], ["ignore"]);
        assert!(!hook["matchConditions"].as_array().unwrap().is_empty());
    }
    let text = &find(&objects, "MutatingWebhookConfiguration", "tessera-webhook")["webhooks"][0]["matchConditions"][0];
    for name in [
        "nvidia.com/gpu",
        "nvidia.com/gpumem",
        "nvidia.com/gpumem-percentage",
        "nvidia.com/gpucores",
    ] {
        assert!(
            text["expression"].as_str().unwrap().contains(&format!("'{name}'")),
            "{name} never reaches the webhook"
        );
    }
}

#[test]
fn the_webhook_sees_every_pod_where_every_pod_is_changed() {
    for change in ["scheduler.overwriteEnv=true", "devices.nvidia.gpuCorePolicy=force"] {
        let Some(rendered) = render(&["--set", change]) else {
            return;
        };
        let objects = objects(&rendered);
        let hook = &find(&objects, "MutatingWebhookConfiguration", "tessera-webhook")["webhooks"][0];
        assert!(
            hook["matchConditions"].is_null(),
            "{change}: containers without a request would be missed"
        );
    }
}

// ---------------------------------------------------------------- what it asks of the node

#[test]
fn the_agent_touches_these_folders_and_is_not_privileged() {
    let Some(rendered) = render(&[]) else { return };
    let objects = objects(&rendered);
    let agent = find(&objects, "DaemonSet", "tessera-device-plugin");
    let spec = &agent["spec"]["template"]["spec"];
    let mounts = container(agent, "device-plugin")["volumeMounts"].as_array().unwrap();
    let mut touched = BTreeMap::new();
    for volume in spec["volumes"].as_array().unwrap() {
        let Some(path) = volume["hostPath"]["path"].as_str() else {
            continue;
        };
        let mount = mounts.iter().find(|mount| mount["name"] == volume["name"]).unwrap();
        touched.insert(path, if mount["readOnly"] == true { "read" } else { "write" });
    }
    assert_eq!(
        touched,
        BTreeMap::from([
            ("/var/lib/kubelet/device-plugins", "write"),
            ("/var/lib/kubelet/pod-resources", "read"),
            ("/run/tessera", "write"),
            ("/usr/local/vgpu", "write"),
            ("/var/run/cdi", "write"),
            ("/usr", "read"),
            ("/dev", "read"),
            ("/sys/fs/cgroup", "read"),
        ])
    );
    let context = &container(agent, "device-plugin")["securityContext"];
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"]);
    assert!(context["capabilities"]["add"].is_null());
    for shared in ["hostPID", "hostIPC", "hostNetwork"] {
        assert!(spec[shared].is_null(), "{shared}");
    }
    assert_eq!(spec["nodeSelector"]["gpu"], "on");
}

#[test]
fn folders_of_the_node_can_be_moved() {
    let Some(rendered) = render(&[
        "--set",
        "devicePlugin.kubeletRoot=/k/,global.gpuHookPath=/opt,devicePlugin.nvidiaDriverRoot=/run/nvidia/driver,agent.runPath=/run/t",
    ]) else {
        return;
    };
    let objects = objects(&rendered);
    let agent = find(&objects, "DaemonSet", "tessera-device-plugin");
    let paths: BTreeSet<&str> = agent["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    assert_eq!(
        paths,
        BTreeSet::from([
            "/k/device-plugins",
            "/k/pod-resources",
            "/opt/vgpu",
            "/run/nvidia/driver",
            "/run/t",
            "/sys/fs/cgroup",
            "/var/run/cdi"
        ])
    );
}

#[test]
fn privileged_can_be_asked_for() {
    let Some(rendered) = render(&["--set", "devicePlugin.securityContext.privileged=true"]) else {
        return;
    };
    let objects = objects(&rendered);
    let context = &container(find(&objects, "DaemonSet", "tessera-device-plugin"), "device-plugin")["securityContext"];
    // The API server refuses the one without the other.
    assert_eq!(context["privileged"], true);
    assert_eq!(context["allowPrivilegeEscalation"], true);
}

#[test]
fn simulated_cards_take_the_place_of_the_driver() {
    let Some(rendered) = render(&["--set-json", r#"simulate.cards=[{"model":"T4","count":2}]"#]) else {
        return;
    };
    let objects = objects(&rendered);
    assert_eq!(
        data(&objects, "tessera-simulate", "cards.yaml"),
        serde_json::json!({"cards": [{"model": "T4", "count": 2}]})
    );
    let agent = find(&objects, "DaemonSet", "tessera-device-plugin");
    let install = &agent["spec"]["template"]["spec"]["initContainers"][0];
    let script = install["args"][0].as_str().unwrap();
    assert!(
        script.contains("tessera-simdriver install --cards /config/cards.yaml --root /run/tessera/sim"),
        "{script}"
    );
    let volumes = agent["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let root = volumes.iter().find(|volume| volume["name"] == "driver-root").unwrap();
    assert_eq!(root["hostPath"]["path"], "/run/tessera/sim");
    assert!(
        !volumes.iter().any(|volume| volume["hostPath"]["path"] == "/usr"),
        "the host's own driver stays out"
    );
}

#[test]
fn players_have_rights_of_their_own_and_are_off_by_default() {
    let Some(rendered) = render(&[]) else { return };
    assert!(!rendered.contains("-players"));
    let cards = r#"simulate.cards=[{"vendor":"hygon","model":"K100_AI"}]"#;
    let more = [
        "--set-json",
        cards,
        "--set",
        "simulate.players.enabled=true,devicePlugin.enabled=false",
    ];
    let Some(rendered) = render(&more) else { return };
    let objects = objects(&rendered);
    let players = find(&objects, "DaemonSet", "tessera-players");
    let pod = &players["spec"]["template"]["spec"];
    assert_eq!(
        pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"],
        false
    );
    assert_eq!(
        rights(&objects, "ClusterRole", "tessera-players"),
        set(&["get nodes", "patch nodes", "get pods", "list pods", "patch pods"])
    );
    assert_eq!(
        data(&objects, "tessera-simulate", "cards.yaml")["cards"][0]["vendor"],
        "hygon"
    );
    // Nobody else may serve the node.
    assert_eq!(objects.iter().filter(|object| object["kind"] == "DaemonSet").count(), 1);
}

#[test]
fn a_machine_file_is_passed_on_word_for_word() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("machine.yaml");
    std::fs::write(&file, "# two boxes\ncards:\n  - {model: T4}\nlinks: []\n").unwrap();
    let argument = format!("simulate.cards={}", file.display());
    let Some(rendered) = render(&["--set-file", &argument]) else {
        return;
    };
    let objects = objects(&rendered);
    let text = &find(&objects, "ConfigMap", "tessera-simulate")["data"]["cards.yaml"];
    assert_eq!(
        text.as_str().unwrap().trim(),
        "# two boxes\ncards:\n  - {model: T4}\nlinks: []"
    );
}

// ---------------------------------------------------------------- the configuration of kube-scheduler

#[test]
fn kube_scheduler_asks_the_neighbour_in_its_pod() {
    for (mode, prioritizes) in [("one", false), ("all", true)] {
        let set = format!("scheduler.filterMode={mode}");
        let Some(rendered) = render(&["--set", &set]) else {
            return;
        };
        let objects = objects(&rendered);
        let config = data(&objects, "tessera-scheduler", "config.yaml");
        assert_eq!(config["apiVersion"], "kubescheduler.config.k8s.io/v1");
        assert_eq!(config["profiles"][0]["schedulerName"], "hami-scheduler");
        assert_eq!(config["leaderElection"]["resourceName"], "hami-scheduler");
        let extenders = config["extenders"].as_array().unwrap();
        assert_eq!(extenders.len(), 1);
        let extender = &extenders[0];
        assert_eq!(extender["filterVerb"], "filter");
        assert_eq!(extender["bindVerb"], "bind");
        assert_eq!(extender["preemptVerb"], "preempt");
        assert_eq!(extender["prioritizeVerb"] == "prioritize", prioritizes, "{mode}");
        assert_eq!(extender["nodeCacheCapable"], true);
        assert_eq!(
            extender["ignorable"], false,
            "an ignored extender would let pods run without cards"
        );
        let managed: BTreeMap<&str, bool> = extender["managedResources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|resource| {
                (
                    resource["name"].as_str().unwrap(),
                    resource["ignoredByScheduler"].as_bool().unwrap(),
                )
            })
            .collect();
        for name in [
            "nvidia.com/gpu",
            "nvidia.com/gpucores",
            "nvidia.com/gpumem",
            "nvidia.com/gpumem-percentage",
            "nvidia.com/priority",
            "cambricon.com/vmlu",
            "hygon.com/dcumem",
        ] {
            assert!(managed.contains_key(name), "{name}");
        }
        // kube-scheduler counts what the makers' plugins state amounts of; any other name is on no node.
        let counted: Vec<&str> = managed
            .iter()
            .filter(|(_, ignored)| !**ignored)
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(
            counted,
            [
                "cambricon.com/mlu.smlu.vcore",
                "cambricon.com/mlu.smlu.vmemory",
                "mthreads.com/sgpu-core",
                "mthreads.com/sgpu-memory",
            ]
        );
        let address = extender["urlPrefix"].as_str().unwrap().strip_prefix("http://").unwrap();
        assert!(
            address.starts_with("127.0.0.1:"),
            "{address} can be reached from outside the pod"
        );
        let scheduler = container(
            find(&objects, "Deployment", "tessera-scheduler"),
            "vgpu-scheduler-extender",
        );
        assert!(texts(&scheduler["args"]).contains(&format!("--http_bind={address}").as_str()));
        assert!(texts(&scheduler["args"]).contains(&format!("--filter-mode={mode}").as_str()));
    }
}

#[test]
fn names_of_resources_are_the_same_everywhere() {
    let Some(rendered) = render(&["--set", "resourceName=example.com/card,resourceMem=example.com/mem"]) else {
        return;
    };
    let objects = objects(&rendered);
    let nvidia = &data(&objects, "tessera-scheduler-device", "device-config.yaml")["nvidia"];
    assert_eq!(nvidia["resourceCountName"], "example.com/card");
    assert_eq!(nvidia["resourceMemoryName"], "example.com/mem");
    let managed = &data(&objects, "tessera-scheduler", "config.yaml")["extenders"][0]["managedResources"];
    assert_eq!(managed[0]["name"], "example.com/card");
    assert_eq!(managed[1]["name"], "example.com/mem");
    let hook = &find(&objects, "MutatingWebhookConfiguration", "tessera-webhook")["webhooks"][0];
    assert!(
        hook["matchConditions"][0]["expression"]
            .as_str()
            .unwrap()
            .contains("'example.com/mem'")
    );
}

#[test]
fn what_the_extender_manages_is_what_the_classes_understand() {
    let all = "devices.ascend.enabled=true,devices.iluvatar.enabled=true,devices.intel.enabled=true,devices.gaudi.enabled=true";
    for (set, ascend, iluvatar) in [("devices.kunlun.enabled=false", false, false), (all, true, true)] {
        let Some(rendered) = render(&["--set", set]) else {
            return;
        };
        let objects = objects(&rendered);
        let config = data(&objects, "tessera-scheduler-device", "device-config.yaml").to_string();
        let config = DeviceConfig::from_yaml(&config).unwrap();
        let options = tessera_vendors::Options { ascend, iluvatar };
        let classes = tessera_vendors::from_config_with(&config, &options);
        let understood: BTreeSet<String> = classes
            .iter()
            .flat_map(|class| class.names().managed().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let extender = &data(&objects, "tessera-scheduler", "config.yaml")["extenders"][0];
        let managed: BTreeSet<String> = extender["managedResources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|resource| resource["name"].as_str().unwrap().to_owned())
            .collect();
        // Of the classes that are off the webhook sees the pods, to refuse them.
        let hook = &find(&objects, "MutatingWebhookConfiguration", "tessera-webhook")["webhooks"][0];
        let seen = hook["matchConditions"][0]["expression"].as_str().unwrap();
        let off = tessera_vendors::not_enabled(&classes);
        assert!(!off.is_empty() || ascend, "{set}");
        for name in off.keys() {
            assert!(
                seen.contains(&format!("'{name}'")),
                "{set}: the webhook does not see {name}"
            );
        }
        let named = seen.split('\'').skip(1).step_by(2).collect::<BTreeSet<_>>();
        for name in named.into_iter().filter(|name| !name.starts_with("tessera.dev/")) {
            assert!(
                managed.contains(name) || off.contains_key(name),
                "{set}: nobody answers for {name}"
            );
        }
        let missing: Vec<&String> = understood.difference(&managed).collect();
        assert!(missing.is_empty(), "{set}: understood but not managed: {missing:?}");
        let unknown: Vec<&String> = managed.difference(&understood).collect();
        assert!(unknown.is_empty(), "{set}: managed but not understood: {unknown:?}");
        let scheduler = container(
            find(&objects, "Deployment", "tessera-scheduler"),
            "vgpu-scheduler-extender",
        );
        let args = texts(&scheduler["args"]);
        assert_eq!(args.contains(&"--enable-ascend=true"), ascend);
        assert_eq!(args.contains(&"--enable-iluvatar=true"), iluvatar);
    }
}

#[test]
fn a_whole_configuration_file_decides_about_the_names_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("device-config.yaml");
    std::fs::write(
        &file,
        "nvidia:\n  resourceCountName: example.com/card\n  overwriteEnv: true\n",
    )
    .unwrap();
    let argument = format!("device-config.content={}", file.display());
    let Some(rendered) = render(&["--set-file", &argument]) else {
        return;
    };
    let objects = objects(&rendered);
    let extender = &data(&objects, "tessera-scheduler", "config.yaml")["extenders"][0];
    assert_eq!(extender["managedResources"].as_array().unwrap().len(), 1);
    assert_eq!(extender["managedResources"][0]["name"], "example.com/card");
    let hook = &find(&objects, "MutatingWebhookConfiguration", "tessera-webhook")["webhooks"][0];
    assert!(hook["matchConditions"].is_null(), "overwriteEnv changes every pod");
}

#[test]
fn several_replicas_share_a_lease_and_a_budget() {
    let Some(rendered) = render(&["--set", "scheduler.replicas=2"]) else {
        return;
    };
    let objects = objects(&rendered);
    assert_eq!(find(&objects, "Deployment", "tessera-scheduler")["spec"]["replicas"], 2);
    assert_eq!(
        find(&objects, "PodDisruptionBudget", "tessera-scheduler")["spec"]["minAvailable"],
        1
    );
    for lease in ["hami-scheduler", "hami-scheduler-extender"] {
        assert!(
            find(&objects, "Lease", lease)["spec"].is_null(),
            "an upgrade must not overwrite the holder"
        );
    }
}

/// `helm upgrade` over a HAMi release keeps selectors and names, which Kubernetes does not let change.
#[test]
fn an_upgrade_over_hami_keeps_what_cannot_change() {
    let output = run(&[
        "template",
        "hami",
        "charts/tessera",
        "--namespace",
        "kube-system",
        "--kube-version",
        "1.36.3",
        "--set",
        "nameOverride=hami",
    ]);
    let Some(output) = output else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let objects = objects(&String::from_utf8(output.stdout).unwrap());
    for (kind, name, component) in [
        ("Deployment", "hami-scheduler", "hami-scheduler"),
        ("DaemonSet", "hami-device-plugin", "hami-device-plugin"),
    ] {
        assert_eq!(
            find(&objects, kind, name)["spec"]["selector"]["matchLabels"],
            serde_json::json!({
                "app.kubernetes.io/component": component,
                "app.kubernetes.io/name": "hami",
                "app.kubernetes.io/instance": "hami",
            })
        );
    }
    for (binding, role) in [
        ("hami-scheduler", "hami-scheduler"),
        ("hami-scheduler-kube", "system:kube-scheduler"),
        ("hami-scheduler-volume", "system:volume-scheduler"),
        ("hami-device-plugin", "hami-device-plugin-monitor"),
    ] {
        assert_eq!(find(&objects, "ClusterRoleBinding", binding)["roleRef"]["name"], role);
    }
    find(&objects, "MutatingWebhookConfiguration", "hami-webhook");
}

#[test]
fn objects_say_where_they_belong() {
    let Some(rendered) = render(&["--set", "namespaceOverride=elsewhere"]) else {
        return;
    };
    let cluster_wide = [
        "ClusterRole",
        "ClusterRoleBinding",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ];
    for object in objects(&rendered) {
        let kind = object["kind"].as_str().unwrap();
        let namespace = object["metadata"]["namespace"].as_str();
        if cluster_wide.contains(&kind) || kind.starts_with("ValidatingAdmissionPolicy") {
            assert_eq!(namespace, None, "{kind}");
        } else if object["roleRef"]["name"] == "extension-apiserver-authentication-reader" {
            assert_eq!(namespace, Some("kube-system"));
        } else {
            assert_eq!(namespace, Some("elsewhere"), "{kind}");
        }
    }
}

// ---------------------------------------------------------------- wrong values

#[test]
fn a_wrong_value_is_refused_with_the_reason() {
    let cases = [
        (
            "scheduler.filtermode=all",
            "additional properties 'filtermode' not allowed",
        ),
        ("scheduler.filterMode=some", "value must be one of 'one', 'all'"),
        (
            "scheduler.replicas=two",
            "at '/scheduler/replicas': got string, want integer",
        ),
        (
            "scheduler.defaultSchedulerPolicy.nodeSchedulerPolicy=pack",
            "must be one of 'binpack', 'spread'",
        ),
        ("resourceName=gpu", "at '/resourceName': 'gpu' does not match"),
        ("agent.runtimeMode=docker", "must be one of 'auto', 'direct', 'envvar'"),
        ("devicePlugin.deviceSplitCount=0", "at '/devicePlugin/deviceSplitCount'"),
        (
            "devicePlugin.kubeletRoot=var/lib/kubelet",
            "at '/devicePlugin/kubeletRoot'",
        ),
        (
            "devicePlugin.libPath=/opt/vgpu",
            "devicePlugin.libPath is \"/opt/vgpu\", but global.gpuHookPath makes it",
        ),
        (
            "scheduler.replicas=2,scheduler.leaderElect=false",
            "set leaderElect: true or replicas: 1",
        ),
        (
            "simulate.cards[0].vendor=hygon,simulate.cards[0].model=K100_AI",
            "set simulate.players.enabled to true",
        ),
        ("simulate.players.enabled=true", "simulate.cards is empty"),
        (
            "simulate.players.mischief={hygon=lazy}",
            "at '/simulate/players/mischief/0'",
        ),
        ("scheduler.filterMode=all,scheduler.writeAt=filter", "set writeAt: bind"),
        (
            "scheduler.profiles[0].schedulerName=mine",
            "scheduler.profiles has no entry with schedulerName",
        ),
        (
            "scheduler.admissionWebhook.tlsSecretName=mine",
            "give the CA in PEM as caBundle",
        ),
        (
            "devicePlugin.createRuntimeClass=true",
            "devicePlugin.runtimeClassName is empty",
        ),
        ("global.imageTag=v2.10.0", "a tag of HAMi's image: remove it"),
        (
            "scheduler.hostNetwork=true,scheduler.service.httpTargetPort=443",
            "take a port above 1023",
        ),
        ("device-config.content=nvidia: [", "device-config.content is not YAML"),
    ];
    for (value, expected) in cases {
        let Some(output) = run(&["template", "tessera", "charts/tessera", "--set", value]) else {
            return;
        };
        assert!(!output.status.success(), "{value} is accepted");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(expected), "{value}: {said}");
    }
}
