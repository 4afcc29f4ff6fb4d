//! One node with a player, our scheduler's decisions about it, an API server that holds objects, and a kubelet's
//! device manager in miniature.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tessera_engine::{Assumption, Candidates, Defaults, Engine, NodeChange, World, WriteContext, admission, text};
use tessera_kube::script::{Reply, Sent, client};
use tessera_kubelet::fake::{FakeContainer, FakeKubelet, FakePod};
use tessera_kubelet::proto::deviceplugin_v1beta1::ContainerAllocateResponse;
use tessera_players::api::Server;
use tessera_players::cards::Mix;
use tessera_players::player::{Mischief, Player, Setting, play};
use tessera_players::{Machine, Part};
use tessera_types::Share;
use tessera_vendors::Options;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};
use tokio_util::sync::CancellationToken;

pub(crate) const NODE: &str = "n1";
const DEADLINE: Duration = Duration::from_secs(20);

/// All classes on, with HAMi's names.
const CONFIG: &str = "
metax: {resourceCountName: metax-tech.com/gpu, resourceVCountName: metax-tech.com/sgpu, resourceVMemoryName: metax-tech.com/vmemory, resourceVCoreName: metax-tech.com/vcore}
hygon: {resourceCountName: hygon.com/dcunum, resourceMemoryName: hygon.com/dcumem, resourceCoreName: hygon.com/dcucores}
cambricon: {resourceCountName: cambricon.com/vmlu, resourceMemoryName: cambricon.com/mlu.smlu.vmemory, resourceCoreName: cambricon.com/mlu.smlu.vcore}
mthreads: {resourceCountName: mthreads.com/vgpu, resourceMemoryName: mthreads.com/sgpu-memory, resourceCoreName: mthreads.com/sgpu-core}
iluvatars: [{chipName: BI-V150, commonWord: BI-V150, resourceCountName: iluvatar.ai/BI-V150-vgpu, resourceMemoryName: iluvatar.ai/BI-V150.vMem, resourceCoreName: iluvatar.ai/BI-V150.vCore}]
enflame: {resourceNameGCU: enflame.com/gcu, resourceNameDRSGCU: enflame.com/drs-gcu, resourceNameGCUMemory: enflame.com/gcu-memory, resourceNameGCUCore: enflame.com/gcu-core}
kunlun: {resourceCountName: kunlunxin.com/xpu, resourceVCountName: kunlunxin.com/vxpu, resourceVMemoryName: kunlunxin.com/vxpu-memory}
awsneuron: {resourceCountName: aws.amazon.com/neuron, resourceCoreName: aws.amazon.com/neuroncore}
amd: {resourceCountName: amd.com/gpu, resourceMemoryName: amd.com/gpumem, resourceCoreName: amd.com/gpucores}
vastai: {resourceCountName: vastaitech.com/va}
biren: {resourceCountName: birentech.com/gpu}
intel: {resourceCountName: intel.com/gpu, resourceMemoryName: intel.com/gpumem, resourceMemoryPercentageName: intel.com/gpumem-percentage, resourceCoreName: intel.com/gpucores}
gaudi: {resourceCountName: habana.ai/gaudi}
vnpus:
  hamiVnpuCore: false
  configs:
  - {chipName: 910B3, commonWord: Ascend910B3, resourceName: huawei.com/Ascend910B3, resourceMemoryName: huawei.com/Ascend910B3-memory, resourceCoreName: huawei.com/Ascend910B3-core, memoryAllocatable: 65536, memoryCapacity: 65536, memoryFactor: 1, aiCore: 20, aiCPU: 7, templates: [{name: vir05_1c_16g, memory: 16384, aiCore: 5, aiCPU: 1}, {name: vir10_3c_32g, memory: 32768, aiCore: 10, aiCPU: 3}]}
";

/// Names and amounts of one container.
pub(crate) type Limits = &'static [(&'static str, &'static str)];

/// The API server's objects by path.
type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

fn node_path() -> String {
    format!("/api/v1/nodes/{NODE}")
}

fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/ns/pods/{name}")
}

/// Serves reads, lists and merge patches.
fn answer(objects: &Objects, sent: &Sent) -> Reply {
    let mut objects = objects.lock().unwrap();
    if sent.method == "GET" && sent.path == "/api/v1/pods" {
        let items: Vec<Value> = objects
            .iter()
            .filter(|(path, pod)| path.contains("/pods/") && pod["spec"]["nodeName"] == NODE)
            .map(|(_, pod)| pod.clone())
            .collect();
        return Reply::Object(json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}));
    }
    let Some(object) = objects.get_mut(&sent.path) else {
        return Reply::Refuse(404, "NotFound");
    };
    match sent.method.as_str() {
        "GET" => Reply::Object(object.clone()),
        "PATCH" => {
            json_patch::merge(object, &sent.body);
            Reply::Object(object.clone())
        }
        _ => Reply::Refuse(405, "MethodNotAllowed"),
    }
}

pub(crate) struct Stage {
    /// Kept as long as the kubelet lives in it.
    _folder: TempDir,
    pub(crate) kubelet: FakeKubelet,
    pub(crate) machine: Machine,
    objects: Objects,
    engine: Engine,
    world: World,
    cancel: CancellationToken,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Stage {
    /// A player with these cards, registered with kubelet and API server, and read by the scheduler.
    pub(crate) async fn start(entries: &str, mischief: Mischief) -> Self {
        let (stage, change) = Self::start_checked(entries, mischief).await;
        assert!(change.problems.is_empty(), "{entries}: {:?}", change.problems);
        stage
    }

    pub(crate) async fn start_checked(entries: &str, mischief: Mischief) -> (Self, NodeChange) {
        let mix = Mix::parse(&format!("cards: [{entries}]")).unwrap();
        let (vendor, cards) = mix.players.iter().next().unwrap();
        let machine = Machine::new(Part::find(vendor).unwrap(), NODE, cards).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kubelet = FakeKubelet::start(folder.path()).unwrap();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
        let objects: Objects = Arc::new(Mutex::new(BTreeMap::from([(node_path(), node)])));
        let serving = Arc::clone(&objects);
        let (client, _) = client(move |sent| answer(&serving, sent));
        let player = Arc::new(Player::new(
            machine.clone(),
            Server::new(client, NODE),
            mischief.clone(),
        ));
        let setting = Setting {
            plugin_dir: kubelet.plugin_dir(),
            beat: Duration::from_secs(3600),
            mischief,
        };
        player.beat().await.unwrap();
        let cancel = CancellationToken::new();
        let (playing, stop) = (Arc::clone(&player), cancel.clone());
        tokio::spawn(async move { play(playing, &setting, stop).await });
        let classes = tessera_vendors::from_config_with(&DeviceConfig::from_yaml(CONFIG).unwrap(), &Options::default());
        let mut stage = Self {
            _folder: folder,
            kubelet,
            machine,
            objects,
            world: World::new(Arc::clone(&classes)),
            engine: Engine::new(classes, Defaults::default()),
            cancel,
        };
        let change = stage.see_node().await;
        (stage, change)
    }

    /// The kubelet counts the plugin's devices on the node, and the scheduler sees the node.
    pub(crate) async fn see_node(&mut self) -> NodeChange {
        let mut counts = serde_json::Map::new();
        for (resource, devices) in self.machine.devices().unwrap() {
            let seen = self
                .kubelet
                .await_devices(&resource, DEADLINE, |seen| seen.len() == devices.len())
                .await
                .unwrap();
            counts.insert(resource, json!(seen.len().to_string()));
        }
        let mut node = self.node();
        node["status"] = json!({"capacity": counts, "allocatable": counts});
        self.objects.lock().unwrap().insert(node_path(), node.clone());
        self.world.set_node(&NodeView::from_json(&node).unwrap())
    }

    pub(crate) fn node(&self) -> Value {
        self.objects.lock().unwrap()[&node_path()].clone()
    }

    pub(crate) fn set_lock(&self, key: &str, owner: &str) {
        let lock = json!({"metadata": {"annotations": {key: format!("2026-01-02T03:04:05Z,ns,{owner}")}}});
        json_patch::merge(self.objects.lock().unwrap().get_mut(&node_path()).unwrap(), &lock);
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.objects.lock().unwrap()[&pod_path(name)].clone()
    }

    /// Ids of the cards that the scheduler sees.
    pub(crate) fn cards(&self) -> Vec<String> {
        let snapshot = self.world.snapshot();
        let node = snapshot.node(NODE);
        let ids = node
            .iter()
            .flat_map(|node| node.cards())
            .map(|card| card.id.to_string());
        ids.collect()
    }

    /// Admission, decision, booking, and what bind writes. The promise, container by container; else the reason.
    pub(crate) fn schedule(
        &mut self,
        name: &str,
        annotations: Limits,
        containers: &[Limits],
    ) -> Result<Vec<Vec<Share>>, String> {
        let number = self.objects.lock().unwrap().len();
        let list: Vec<Value> = containers
            .iter()
            .enumerate()
            .map(|(at, limits)| {
                let limits: BTreeMap<&str, &str> = limits.iter().copied().collect();
                json!({"name": format!("c{at}"), "resources": {"limits": limits, "requests": limits}})
            })
            .collect();
        let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "annotations": annotations},
            "spec": {"containers": list}, "status": {"phase": "Pending"}});
        let settings = admission::Settings::default();
        match admission::review(&pod, "ns", &settings, &self.engine, &self.world.snapshot()) {
            admission::Verdict::Deny { text, .. } => return Err(text),
            admission::Verdict::Allow { patch, .. } => {
                let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(&patch).unwrap()).unwrap();
                json_patch::patch(&mut pod, &patch).unwrap();
            }
        }
        let view = PodView::from_json(&pod).unwrap();
        let demand = self.engine.demand(&view).unwrap();
        assert!(!demand.is_empty(), "{name} asks for nothing");
        let decision = self.engine.decide(&self.world.snapshot(), &demand, Candidates::All);
        let Some(fit) = decision.winner() else {
            return Err(text::node(&decision.refused[0].1));
        };
        self.world
            .assume(&Assumption {
                pod: &view.id,
                roles: &view.roles(),
                node: &fit.node,
                allocation: Arc::clone(&fit.allocation),
                priority: 0,
                facts: &demand.facts,
                now: 0,
                expires_at: 90,
            })
            .map_err(|error| error.to_string())?;
        let snapshot = self.world.snapshot();
        let written = self.engine.annotations(
            &fit.allocation,
            &demand,
            &WriteContext {
                node: &fit.node,
                now_seconds: 1_800_000_000 + i64::try_from(number).unwrap(),
                cards: snapshot.node(NODE).unwrap().cards(),
            },
        );
        for (key, value) in written {
            pod["metadata"]["annotations"][key] = json!(value);
        }
        pod["metadata"]["annotations"]["hami.io/bind-phase"] = json!("allocating");
        pod["metadata"]["annotations"]["hami.io/bind-time"] = json!((1_800_000_000 + number).to_string());
        pod["spec"]["nodeName"] = json!(NODE);
        if let Some(key) = &self.machine.part.allocate.lock {
            if key == "hami.io/mutex.lock" {
                self.set_lock(key, name);
            } else {
                let lock = json!({"metadata": {"annotations": {key: "2026-01-02T03:04:05Z"}}});
                json_patch::merge(self.objects.lock().unwrap().get_mut(&node_path()).unwrap(), &lock);
            }
        }
        self.objects.lock().unwrap().insert(pod_path(name), pod);
        let mut promised = vec![Vec::new(); containers.len()];
        for (at, share) in fit.allocation.shares() {
            promised[at].push(share.clone());
        }
        Ok(promised)
    }

    /// The kubelet admits the pod: what each container got, resource by resource.
    pub(crate) async fn admit(&self, name: &str) -> Result<Vec<BTreeMap<String, ContainerAllocateResponse>>, String> {
        let pod = self.pod(name);
        let fake = FakePod {
            uid: format!("uid-{name}"),
            namespace: "ns".to_owned(),
            name: name.to_owned(),
            containers: vec![FakeContainer {
                name: "c0".to_owned(),
                init: false,
                devices: 1,
            }],
        };
        let mut got = Vec::new();
        for (at, container) in pod["spec"]["containers"].as_array().unwrap().iter().enumerate() {
            let mut answers = BTreeMap::new();
            for (resource, _) in self.machine.devices().unwrap() {
                let Some(asked) = container["resources"]["limits"].get(&resource) else {
                    continue;
                };
                let asked: usize = asked
                    .as_str()
                    .map_or_else(|| asked.to_string(), str::to_owned)
                    .parse()
                    .unwrap();
                // Which ids are free is no concern of the player: the kubelet's last ones, against the order of cards.
                let mut ids = self.kubelet.free_ids(&resource);
                ids.reverse();
                ids.truncate(asked);
                let answer = self
                    .kubelet
                    .allocate(&resource, &fake, &format!("c{at}"), &ids)
                    .await
                    .map_err(|status| status.message().to_owned())?;
                answers.insert(resource, answer);
            }
            got.push(answers);
        }
        Ok(got)
    }

    pub(crate) fn lock(&self) -> Option<String> {
        let key = self.machine.part.allocate.lock.clone()?;
        self.node()["metadata"]["annotations"][key].as_str().map(str::to_owned)
    }
}

impl Stage {
    /// The pod runs.
    pub(crate) fn runs(&mut self, name: &str) {
        let running = json!({"status": {"phase": "Running"}});
        json_patch::merge(self.objects.lock().unwrap().get_mut(&pod_path(name)).unwrap(), &running);
        self.sees(name);
    }

    /// The scheduler sees the pod as the API server has it.
    pub(crate) fn sees(&mut self, name: &str) {
        let pod = self.pod(name);
        let change = self.world.set_pod(&PodView::from_json(&pod).unwrap());
        assert_eq!(change.problems, [], "{name}");
        assert_eq!(self.world.audit(), [], "{name}");
    }

    pub(crate) fn annotate(&self, name: &str, key: &str, value: &str) {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        json_patch::merge(self.objects.lock().unwrap().get_mut(&pod_path(name)).unwrap(), &patch);
    }

    /// The kubelet counts so many devices from now on, and the scheduler sees it.
    pub(crate) fn set_allocatable(&mut self, resource: &str, number: &str) {
        let mut node = self.node();
        node["status"]["allocatable"][resource] = json!(number);
        self.objects.lock().unwrap().insert(node_path(), node.clone());
        self.world.set_node(&NodeView::from_json(&node).unwrap());
    }

    /// What is booked on each card.
    pub(crate) fn booked(&self) -> Vec<tessera_types::CardUsage> {
        let snapshot = self.world.snapshot();
        let node = snapshot.node(NODE).unwrap();
        node.usage().iter().map(|card| card.usage).collect()
    }
}
