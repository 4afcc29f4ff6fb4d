use super::*;

/// A file as HAMi 2.10's chart renders it, shortened to one chip of each list.
const RENDERED: &str = r#"
nvidia:
  resourceCountName: nvidia.com/gpu
  resourceMemoryName: nvidia.com/gpumem
  resourceMemoryPercentageName: nvidia.com/gpumem-percentage
  resourceCoreName: nvidia.com/gpucores
  resourcePriorityName: nvidia.com/priority
  overwriteEnv: false
  defaultMemory: 0
  defaultCores: 0
  defaultGPUNum: 1
  preConfiguredDeviceMemory: 0
  memoryFactor: 1
  deviceSplitCount: 10
  deviceMemoryScaling: 1
  deviceCoreScaling: 1
  enableNumaTopology: false
  gpuCorePolicy: default
  libCudaLogLevel: 1
  runtimeClassName: ""
  migProfileAllowlist:
  - models: [ "A30" ]
    profiles: [ "1g.6gb", "2g.12gb", "4g.24gb" ]
cambricon:
  resourceCountName: cambricon.com/vmlu
  resourceMemoryName: cambricon.com/mlu.smlu.vmemory
  resourceCoreName: cambricon.com/mlu.smlu.vcore
hygon:
  resourceCountName: hygon.com/dcunum
  resourceMemoryName: hygon.com/dcumem
  resourceCoreName: hygon.com/dcucores
  memoryFactor: 1
metax:
  resourceCountName: "metax-tech.com/gpu"
  resourceVCountName: metax-tech.com/sgpu
  resourceVMemoryName: metax-tech.com/vmemory
  resourceVCoreName: metax-tech.com/vcore
  sgpuTopologyAware: false
enflame:
  resourceNameGCU: "enflame.com/gcu"
  resourceNameDRSGCU: enflame.com/drs-gcu
  resourceNameGCUMemory: enflame.com/gcu-memory
  resourceNameGCUCore: enflame.com/gcu-core
mthreads:
  resourceCountName: "mthreads.com/vgpu"
  resourceMemoryName: "mthreads.com/sgpu-memory"
  resourceCoreName: "mthreads.com/sgpu-core"
  memoryPerCard:
    - 96
iluvatars:
- chipName: MR-V100
  commonWord: MR-V100
  resourceCountName: iluvatar.ai/MR-V100-vgpu
  resourceMemoryName: iluvatar.ai/MR-V100.vMem
  resourceCoreName: iluvatar.ai/MR-V100.vCore
kunlun:
  resourceCountName: kunlunxin.com/xpu
  resourceVCountName: kunlunxin.com/vxpu
  resourceVMemoryName: kunlunxin.com/vxpu-memory
awsneuron:
  resourceCountName: "aws.amazon.com/neuron"
  resourceCoreName: "aws.amazon.com/neuroncore"
amd:
  resourceCountName: "amd.com/gpu"
  resourceCoreName: "amd.com/gpucores"
  resourceMemoryName: "amd.com/gpumem"
vastai:
  resourceCountName: vastaitech.com/va
biren:
  resourceCountName: birentech.com/gpu
vnpus:
  hamiVnpuCore: false
  configs:
  - chipName: 910B3
    commonWord: Ascend910B3
    resourceName: huawei.com/Ascend910B3
    resourceMemoryName: huawei.com/Ascend910B3-memory
    resourceCoreName: huawei.com/Ascend910B3-core
    memoryAllocatable: 65536
    memoryCapacity: 65536
    memoryFactor: 1
    aiCore: 20
    aiCPU: 7
    runtimeClassName: ""
    overwriteEnv: false
    superPod: true
    templates:
      - name: vir05_1c_16g
        memory: 16384
        aiCore: 5
        aiCPU: 1
"#;

fn problem(text: &str) -> ConfigError {
    DeviceConfig::from_yaml(text).unwrap_err()
}

#[test]
fn what_the_newest_chart_renders_loads() {
    let config = DeviceConfig::from_yaml(RENDERED).unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
    let nvidia = config.nvidia.unwrap();
    let expected = Nvidia {
        mig_profile_allowlist: nvidia.mig_profile_allowlist.clone(),
        ..Nvidia::default()
    };
    assert_eq!(nvidia, expected);
    let chips = config.vnpus.unwrap().configs;
    assert_eq!(
        (
            chips[0].chip_name.as_str(),
            chips[0].ai_cpu,
            chips[0].templates[0].memory
        ),
        ("910B3", 7, 16384)
    );
    assert_eq!(config.mthreads.unwrap().memory_per_card, [96]);
}

#[test]
fn what_the_chart_before_rendered_loads_with_a_warning() {
    let config = DeviceConfig::from_yaml(
        "nvidia:\n  resourceCountName: nvidia.com/gpu\n  knownMigGeometries:\n  - models: [ \"A30\" ]\n    allowedGeometries:\n      -\n        - name: 1g.6gb\n          core: 25\n          memory: 6144\n          count: 4\nenflame:\n  resourceNameGCU: enflame.com/gcu\n  resourceNameVGCU: enflame.com/vgcu\n  resourceNameVGCUPercentage: enflame.com/vgcu-percentage\nvnpus:\n- chipName: 910A\n  commonWord: Ascend910A\n",
    )
    .unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert_eq!(config.vnpus.unwrap().configs[0].common_word, "Ascend910A");
}

#[test]
fn what_is_left_out_has_the_charts_value() {
    let config = DeviceConfig::from_yaml("nvidia: {}\n").unwrap();
    assert_eq!(config.nvidia.unwrap(), Nvidia::default());
    let config = DeviceConfig::from_yaml("nvidia:\n  defaultGPUNum: 0\n  resourceCountName:\n")
        .unwrap()
        .nvidia
        .unwrap();
    assert_eq!(config.default_gpu_num, 0);
    assert!(!config.is_active());
}

#[test]
fn a_mistyped_key_is_shown_with_its_place_and_the_right_one() {
    let error = problem("nvidia:\n  resourceCountName: a\n  resourceCoresName: b\n");
    assert_eq!(
        error.to_string(),
        "line 3, column 3: unknown key `resourceCoresName`; did you mean `resourceCoreName`?"
    );
    let error = problem("nvida:\n  resourceCountName: a\n");
    assert_eq!(
        error.to_string(),
        "line 1, column 1: unknown key `nvida`; did you mean `nvidia`?"
    );
    let error = problem("vnpus:\n  configs:\n  - chipNam: x\n");
    assert_eq!((error.line, error.column), (Some(3), Some(5)));
    assert!(error.text.contains("did you mean `chipName`"), "{error}");
}

#[test]
fn a_wrong_value_is_shown_with_its_place() {
    let error = problem("nvidia:\n  defaultCores: many\n");
    assert_eq!((error.line, error.column), (Some(2), Some(17)), "{error}");
    let error = problem("nvidia:\n  memoryFactor: 1\n  defaultCores: 150\n");
    assert_eq!(
        error.to_string(),
        "line 3, column 3: `defaultCores` is 150; write a number of 0 to 100"
    );
    let error = problem("nvidia:\n  gpuCorePolicy: forced\n");
    assert!(error.to_string().contains("did you mean `force`"), "{error}");
    assert_eq!(error.line, Some(2));
    let error = problem("nvidia:\n  deviceSplitCount: 0\n");
    assert_eq!(error.line, Some(2), "{error}");
    let error = problem("nvidia:\n  deviceMemoryScaling: .nan\n");
    assert_eq!(error.line, Some(2), "{error}");
    let error = problem("nvidia:\n  migProfileAllowlist:\n  - models: [A30]\n    profiles: [all]\n");
    assert_eq!(error.line, Some(2), "{error}");
    let error = problem("nvidia:\n  overwriteEnv: false\n  overwriteEnv: true\n");
    assert!(error.to_string().contains("`overwriteEnv` stands twice"), "{error}");
    let error = problem("nvidia:\n  resourceCoreName: nvidia.com/gpu\n");
    assert!(error.to_string().contains("given to two resources"), "{error}");
}

#[test]
fn nothing_at_all_is_refused() {
    for text in ["", "# only a comment\n", "{}", "nvidia:\n"] {
        assert!(DeviceConfig::from_yaml(text).is_err(), "{text:?}");
    }
    assert!(DeviceConfig::from_yaml("nvidia: [").is_err());
}

#[test]
fn node_overrides_apply_in_order_and_zero_changes_nothing() {
    let file = NodeConfigFile::from_json(
        r#"{"NodeConfig":[{"Name":"n1","DeviceSplitCount":4,"operatingmode":"mig","enablegetpreferredallocation":true,"filterdevices":{"uuid":["GPU-x"],"index":[3]}},
            {"name":"n1","devicememoryscaling":3,"devicesplitcount":0,"enablenumatopology":false,"libcudaloglevel":"","filterdevices":{"uuid":[],"index":[]}},
            {"name":"*","devicesplitcount":99}]}"#,
    )
    .unwrap();
    let node = file.for_node("n1");
    assert_eq!(node.mode(), "mig");
    assert!(!node.enable_get_preferred_allocation);
    assert!(node.filters("GPU-x", 0) && node.filters("GPU-y", 3) && !node.filters("GPU-y", 0));
    let global = Nvidia {
        enable_numa_topology: true,
        ..Nvidia::default()
    };
    let merged = node.over(&global);
    assert_eq!((merged.device_split_count, merged.device_memory_scaling), (4, 3.0));
    assert!(merged.enable_numa_topology);
    assert_eq!(file.for_node("n2").over(&global), global);
}

#[test]
fn a_bad_node_override_is_shown_with_its_place() {
    let error = NodeConfigFile::from_json("{\"nodeconfig\":[\n {\"name\":\"n1\",\"devicesplitcont\":4}]}").unwrap_err();
    assert_eq!(error.line, Some(2));
    assert!(error.text.contains("did you mean `devicesplitcount`"), "{error}");
    for text in [
        r#"{"nodeconfig":[{"name":"n1","devicesplitcount":-1}]}"#,
        r#"{"nodeconfig":[{"name":"n1","devicesplitcount":"4"}]}"#,
        r#"{"nodeconfig":["#,
        r#"{"nodeconfig":[{"name":"n1","devicememoryscaling":-2}]}"#,
    ] {
        assert!(NodeConfigFile::from_json(text).is_err(), "{text}");
    }
}
