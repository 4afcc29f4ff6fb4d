//! Names of annotations, labels, environment variables and events. HAMi's spelling where HAMi has one.

/// Annotation and label: the node whose cards the pod was given.
pub const VGPU_NODE: &str = "hami.io/vgpu-node";
/// Annotation: when the cards were chosen, Unix seconds.
pub const VGPU_TIME: &str = "hami.io/vgpu-time";
/// Annotation: `allocating`, `success` or `failed`.
pub const BIND_PHASE: &str = "hami.io/bind-phase";
/// Annotation: when the pod was bound, Unix seconds.
pub const BIND_TIME: &str = "hami.io/bind-time";
/// The phase between bind and the end of Allocate.
pub const PHASE_ALLOCATING: &str = "allocating";
/// The phase after all containers have got their devices.
pub const PHASE_SUCCESS: &str = "success";
/// The phase after Allocate failed.
pub const PHASE_FAILED: &str = "failed";
/// Annotation: hardware instances of the pod.
pub const MIG_ALLOCATIONS: &str = "hami.io/vgpu-mig-allocations";

/// Annotation: NVIDIA devices to hand out, consumed on the node.
pub const NVIDIA_TO_ALLOCATE: &str = "hami.io/vgpu-devices-to-allocate";
/// Annotation: NVIDIA devices handed out, never changed later.
pub const NVIDIA_ALLOCATED: &str = "hami.io/vgpu-devices-allocated";
/// Node annotation: NVIDIA cards.
pub const NVIDIA_REGISTER: &str = "hami.io/node-nvidia-register";
/// Node annotation: link scores between NVIDIA cards.
pub const NVIDIA_SCORE: &str = "hami.io/node-nvidia-score";
/// Node annotation: the NVIDIA handshake.
pub const NVIDIA_HANDSHAKE: &str = "hami.io/node-handshake";
/// The keyword of the NVIDIA class.
pub const NVIDIA_KEYWORD: &str = "NVIDIA";

/// Pod annotation: models accepted, comma list.
pub const USE_GPU_TYPE: &str = "nvidia.com/use-gputype";
/// Pod annotation: models not accepted, comma list.
pub const NOUSE_GPU_TYPE: &str = "nvidia.com/nouse-gputype";
/// Pod annotation: card ids accepted, comma list.
pub const USE_GPU_UUID: &str = "nvidia.com/use-gpuuuid";
/// Pod annotation: card ids not accepted, comma list.
pub const NOUSE_GPU_UUID: &str = "nvidia.com/nouse-gpuuuid";
/// Pod annotation: all cards of a container on one NUMA node.
pub const NUMA_BIND: &str = "nvidia.com/numa-bind";
/// Pod annotation: modes of cards accepted.
pub const VGPU_MODE: &str = "nvidia.com/vgpu-mode";
/// Pod annotation: the pod's own node policy.
pub const NODE_POLICY: &str = "hami.io/node-scheduler-policy";
/// Pod annotation: the pod's own card policy.
pub const GPU_POLICY: &str = "hami.io/gpu-scheduler-policy";
/// Pod annotation: weights of the card score.
pub const SCORING_WEIGHTS: &str = "hami.io/device-scoring-weights";
/// Node annotation: card ids that get no new work.
pub const DEVICE_CORDON: &str = "hami.io/device-cordon";
/// Node annotation: the lock between bind and Allocate.
pub const NODE_LOCK: &str = "hami.io/mutex.lock";

/// Label that keeps the webhook away.
pub const WEBHOOK_LABEL: &str = "hami.io/webhook";
/// Its value.
pub const WEBHOOK_IGNORE: &str = "ignore";
/// Label that names a gang.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";

/// Pod annotation: our scheduler placed the pod (its version), so the node agent owes nobody an answer.
pub const TESSERA_SCHEDULER: &str = "tessera.dev/scheduler";
/// Node annotation: our agent serves the node (its version), so no node lock is needed.
pub const TESSERA_AGENT: &str = "tessera.dev/agent";
/// Resource: cards of any class that the pod's image supports.
pub const TESSERA_GPU: &str = "tessera.dev/gpu";
/// Resource: memory of each such card, a quantity in bytes.
pub const TESSERA_MEMORY: &str = "tessera.dev/memory";
/// Resource: compute of each such card, percent.
pub const TESSERA_CORES: &str = "tessera.dev/cores";
/// Pod annotation: the classes that the image supports, the preferred first.
pub const TESSERA_VENDORS: &str = "tessera.dev/vendors";
/// Pod annotation: which cards the pod accepts, as an expression over what nodes register of them.
pub const TESSERA_CARD_RULE: &str = "tessera.dev/card-rule";
/// Pod annotation: what the common request became, as JSON.
pub const TESSERA_TRANSLATED: &str = "tessera.dev/translated";
/// Pod label: which part of Tessera the pod is.
pub const TESSERA_COMPONENT: &str = "tessera.dev/component";
/// Value of [`TESSERA_COMPONENT`]: the node agent.
pub const COMPONENT_AGENT: &str = "agent";
/// Pod annotation written to move a waiting pod back into the scheduling queue.
pub const TESSERA_WAKE: &str = "tessera.dev/wake";
/// Pod annotation: what the containers of a running pod are to have from now on, as JSON.
pub const TESSERA_RESIZE: &str = "tessera.dev/resize";
/// Pod annotation: `refuse` or `wait`, where less is wished than a container holds.
pub const TESSERA_RESIZE_POLICY: &str = "tessera.dev/resize-policy";
/// Pod annotation: what became of [`TESSERA_RESIZE`], by the scheduler.
pub const TESSERA_RESIZE_STATUS: &str = "tessera.dev/resize-status";
/// Pod annotation: what the node holds a resized pod to, by the node agent.
pub const TESSERA_RESIZE_REPORT: &str = "tessera.dev/resize-report";
/// Prefix of our own names.
pub const TESSERA_PREFIX: &str = "tessera.dev/";
/// Prefix of HAMi's names.
pub const HAMI_PREFIX: &str = "hami.io/";

/// Environment: task priority for the library in the container.
pub const ENV_TASK_PRIORITY: &str = "CUDA_TASK_PRIORITY";
/// Environment: how compute limits hold.
pub const ENV_CORE_POLICY: &str = "GPU_CORE_UTILIZATION_POLICY";
/// Environment: which cards the container runtime makes visible.
pub const ENV_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// Environment: switches the limits off, in HAMi.
pub const ENV_DISABLE_CONTROL: &str = "CUDA_DISABLE_CONTROL";

/// Annotations of a pod that record what it was given. Only a scheduler and a node agent may write them.
pub const ALLOCATION_KEYS: [&str; 8] = [
    VGPU_NODE,
    VGPU_TIME,
    BIND_PHASE,
    BIND_TIME,
    MIG_ALLOCATIONS,
    TESSERA_SCHEDULER,
    TESSERA_RESIZE_STATUS,
    TESSERA_RESIZE_REPORT,
];

/// Pod annotations that a user may write, for finding mistyped ones. Other classes add theirs.
pub const USER_KEYS: [&str; 14] = [
    USE_GPU_TYPE,
    NOUSE_GPU_TYPE,
    USE_GPU_UUID,
    NOUSE_GPU_UUID,
    NUMA_BIND,
    VGPU_MODE,
    NODE_POLICY,
    GPU_POLICY,
    SCORING_WEIGHTS,
    TESSERA_VENDORS,
    TESSERA_CARD_RULE,
    TESSERA_TRANSLATED,
    TESSERA_RESIZE,
    TESSERA_RESIZE_POLICY,
];

/// Event reasons and messages that HAMi's users know.
pub mod events {
    /// Filter found a node.
    pub const FILTERING_SUCCEED: &str = "FilteringSucceed";
    /// Filter found none.
    pub const FILTERING_FAILED: &str = "FilteringFailed";
    /// The pod was bound.
    pub const BINDING_SUCCEED: &str = "BindingSucceed";
    /// The pod could not be bound.
    pub const BINDING_FAILED: &str = "BindingFailed";
    /// The share of a running pod was changed.
    pub const RESIZED: &str = "Resized";
    /// A change waits until the pod holds less.
    pub const RESIZE_WAITS: &str = "ResizeWaits";
    /// A change was refused.
    pub const RESIZE_REFUSED: &str = "ResizeRefused";
    /// On a node: what it says of its cards cannot be used.
    pub const CARDS_UNUSABLE: &str = "CardsUnusable";
}

/// Whether a pod annotation records an allocation, of any class: the fixed keys and every
/// `hami.io/<word>-devices-to-allocate`, `-devices-allocated` and `-allocated`.
#[must_use]
pub fn records_allocation(key: &str) -> bool {
    ALLOCATION_KEYS.contains(&key)
        || key.strip_prefix(HAMI_PREFIX).is_some_and(|word| {
            word.ends_with("-devices-to-allocate")
                || word.ends_with("-devices-allocated")
                || word.ends_with("-allocated")
        })
}
