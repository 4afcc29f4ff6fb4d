{{/* The sections of device-config.yaml besides `nvidia`, as text: one for each class that is
     on. HAMi's sizes and names. */}}
{{- define "tessera.sections" -}}
{{- $v := .Values -}}
{{- $on := .Values.devices -}}
{{- if $on.metax.enabled }}
metax:
  resourceCountName: metax-tech.com/gpu
  resourceVCountName: {{ $v.metaxResourceName }}
  resourceVMemoryName: {{ $v.metaxResourceMem }}
  resourceVCoreName: {{ $v.metaxResourceCore }}
  sgpuTopologyAware: {{ eq (toString $v.metaxsGPUTopologyAware) "true" }}
{{- end }}
{{- if $on.hygon.enabled }}
hygon:
  resourceCountName: {{ $v.dcuResourceName }}
  resourceMemoryName: {{ $v.dcuResourceMem }}
  resourceCoreName: {{ $v.dcuResourceCores }}
  memoryFactor: 1
{{- end }}
{{- if $on.cambricon.enabled }}
cambricon:
  resourceCountName: {{ $v.mluResourceName }}
  resourceMemoryName: {{ $v.mluResourceMem }}
  resourceCoreName: {{ $v.mluResourceCores }}
{{- end }}
{{- if $on.mthreads.enabled }}
mthreads:
  resourceCountName: mthreads.com/vgpu
  resourceMemoryName: mthreads.com/sgpu-memory
  resourceCoreName: mthreads.com/sgpu-core
{{- end }}
{{- if $on.enflame.enabled }}
enflame:
  resourceNameGCU: enflame.com/gcu
  resourceNameDRSGCU: {{ $v.enflameResourceNameDRSGCU }}
  resourceNameGCUMemory: {{ $v.enflameResourceNameGCUMemory }}
  resourceNameGCUCore: {{ $v.enflameResourceNameGCUCore }}
{{- end }}
{{- if $on.kunlun.enabled }}
kunlun:
  resourceCountName: {{ $v.kunlunResourceName }}
  resourceVCountName: {{ $v.kunlunResourceVCountName }}
  resourceVMemoryName: {{ $v.kunlunResourceVMemoryName }}
{{- end }}
{{- if $on.awsneuron.enabled }}
awsneuron:
  resourceCountName: aws.amazon.com/neuron
  resourceCoreName: aws.amazon.com/neuroncore
{{- end }}
{{- if $on.amd.enabled }}
amd:
  resourceCountName: amd.com/gpu
  resourceMemoryName: amd.com/gpumem
  resourceCoreName: amd.com/gpucores
{{- end }}
{{- if $on.vastai.enabled }}
vastai:
  resourceCountName: {{ $v.vastaiResourceName }}
{{- end }}
{{- if $on.biren.enabled }}
biren:
  resourceCountName: {{ $v.birenResourceName }}
{{- end }}
{{- if $on.intel.enabled }}
intel:
  resourceCountName: intel.com/gpu
  resourceMemoryName: intel.com/gpumem
  resourceMemoryPercentageName: intel.com/gpumem-percentage
  resourceCoreName: intel.com/gpucores
{{- end }}
{{- if $on.gaudi.enabled }}
gaudi:
  resourceCountName: habana.ai/gaudi
{{- end }}
{{- if $on.iluvatar.enabled }}
iluvatars:
{{- range list "MR-V100" "MR-V50" "BI-V150" "BI-V100" }}
  - chipName: {{ . }}
    commonWord: {{ . }}
    resourceCountName: iluvatar.ai/{{ . }}-vgpu
    resourceMemoryName: iluvatar.ai/{{ . }}.vMem
    resourceCoreName: iluvatar.ai/{{ . }}.vCore
{{- end }}
{{- end }}
{{- if $on.ascend.enabled }}
vnpus:
  hamiVnpuCore: {{ $on.ascend.hamiVnpuCore }}
  configs:
{{- range $chip := include "tessera.ascendChips" . | fromJsonArray }}
    - chipName: {{ $chip.name | quote }}
      commonWord: {{ $chip.word }}
      resourceName: huawei.com/{{ $chip.word }}
      resourceMemoryName: huawei.com/{{ $chip.word }}-memory
      resourceCoreName: huawei.com/{{ $chip.word }}-core
      memoryAllocatable: {{ int64 $chip.memory }}
      memoryCapacity: {{ int64 $chip.capacity }}
      memoryFactor: 1
      aiCore: {{ int $chip.core }}
      {{- with $chip.cpu }}
      aiCPU: {{ int . }}
      {{- end }}
      {{- with $on.ascend.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      overwriteEnv: {{ eq (toString $v.scheduler.overwriteEnv) "true" }}
      {{- if $chip.superPod }}
      superPod: true
      {{- end }}
      templates:
      {{- range $chip.templates }}
        {{- $parts := splitList "/" . }}
        - {name: {{ index $parts 0 }}, memory: {{ index $parts 1 }}, aiCore: {{ index $parts 2 }}{{ if gt (len $parts) 3 }}, aiCPU: {{ index $parts 3 }}{{ end }}}
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Huawei's chips: sizes in MiB, templates as name/memory/AI cores/AI CPUs. */}}
{{- define "tessera.ascendChips" -}}
{{- toJson (list
  (dict "name" "910A" "word" "Ascend910A" "memory" 32768 "capacity" 32768 "core" 30
    "templates" (list "vir02/2184/2" "vir04/4369/4" "vir08/8738/8" "vir16/17476/16"))
  (dict "name" "910B2" "word" "Ascend910B2" "memory" 65536 "capacity" 65536 "core" 24 "cpu" 6
    "templates" (list "vir03_1c_8g/8192/3/1" "vir06_1c_16g/16384/6/1" "vir12_3c_32g/32768/12/3"))
  (dict "name" "910B3" "word" "Ascend910B3" "memory" 65536 "capacity" 65536 "core" 20 "cpu" 7
    "templates" (list "vir05_1c_16g/16384/5/1" "vir10_3c_32g/32768/10/3"))
  (dict "name" "910B4-1" "word" "Ascend910B4-1" "memory" 65536 "capacity" 65536 "core" 20 "cpu" 7
    "templates" (list "vir05_1c_16g/16384/5/1" "vir10_3c_32g/32768/10/3"))
  (dict "name" "910B4" "word" "Ascend910B4" "memory" 32768 "capacity" 32768 "core" 20 "cpu" 7
    "templates" (list "vir05_1c_8g/8192/5/1" "vir10_3c_16g/16384/10/3"))
  (dict "name" "310P3" "word" "Ascend310P" "memory" 21527 "capacity" 24576 "core" 8 "cpu" 7
    "templates" (list "vir01/3072/1/1" "vir02/6144/2/2" "vir04/12288/4/4"))
  (dict "name" "Ascend910" "word" "Ascend910C" "memory" 65536 "capacity" 65536 "core" 20 "cpu" 7 "superPod" true
    "templates" (list "vir05_1c_16g/16384/5/1" "vir10_3c_32g/32768/10/3"))) -}}
{{- end -}}

{{/* The sections besides `nvidia` as they take effect, as JSON. */}}
{{- define "tessera.sectionsInEffect" -}}
{{- $text := dig "device-config" "content" "" (.Values | toJson | fromJson) | default (include "tessera.sections" .) -}}
{{- $parsed := fromYaml ($text | default "{}") -}}
{{- if hasKey $parsed "Error" -}}
{{- fail (printf "\n\ndevice-config.content is not YAML: %s\n" $parsed.Error) -}}
{{- end -}}
{{- $sections := omit $parsed "nvidia" -}}
{{- if not .Values.devices.ascend.enabled -}}{{- $sections = omit $sections "vnpus" -}}{{- end -}}
{{- if not .Values.devices.iluvatar.enabled -}}{{- $sections = omit $sections "iluvatars" -}}{{- end -}}
{{- toJson $sections -}}
{{- end -}}

{{/* Every resource name that a part of the configuration gives, as a JSON list: the texts
     (and lists of texts) under keys that start with `resource` or end with `Resources`. */}}
{{- define "tessera.resourceNames" -}}
{{- $names := list -}}
{{- if kindIs "map" . -}}
{{- range $key := keys . | sortAlpha -}}
{{- $value := get $ $key -}}
{{- if or (hasPrefix "resource" $key) (hasSuffix "Resources" $key) -}}
{{- if kindIs "string" $value -}}
{{- with $value -}}{{- $names = append $names . -}}{{- end -}}
{{- else if kindIs "slice" $value -}}
{{- $names = concat $names $value -}}
{{- end -}}
{{- else -}}
{{- $names = concat $names (include "tessera.resourceNames" $value | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" . -}}
{{- range . -}}
{{- $names = concat $names (include "tessera.resourceNames" . | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}
