{{- define "tessera.agentArgs" -}}
- --config-file=/device-config/device-config.yaml
- --node-config-file=/config/config.json
- --listen=0.0.0.0:{{ int .Values.agent.metricsPort }}
- --device-list-strategy={{ .Values.devicePlugin.deviceListStrategy | default .Values.agent.runtimeMode }}
- --grants-dir={{ trimSuffix "/" .Values.agent.runPath }}/grants
- --hook-path={{ .Values.global.gpuHookPath }}
- --oversubscription={{ .Values.agent.oversubscription }}
- --driver-memory-limits={{ .Values.agent.driverMemoryLimits }}
{{- if ne .Values.agent.driverMemoryLimits "off" }}
- --driver-memory-headroom-mib={{ int .Values.agent.driverMemoryHeadroomMiB }}
- --cgroup-root=/host-cgroup
{{- end }}
{{- if kindIs "bool" .Values.devicePlugin.passDeviceSpecsEnabled }}
- --pass-device-specs={{ .Values.devicePlugin.passDeviceSpecsEnabled }}
{{- end }}
{{- if eq (toString .Values.scheduler.defaultSchedulerPolicy.gpuSchedulerPolicy) "topology-aware" }}
- --enable-topology-score=true
{{- end }}
{{- if .Values.agent.allowDisableControl }}
- --allow-disable-control=true
{{- end }}
{{- range .Values.devicePlugin.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "tessera.agentEnv" -}}
{{- $d := .Values.devicePlugin -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: NVIDIA_DRIVER_ROOT
  value: {{ include "tessera.driverRoot" . | quote }}
- name: DRIVER_ROOT_CTR_PATH
  value: /driver-root
{{- if include "tessera.simulated" . }}
{{- /* Read by the simulated libraries alone: where the files of their cards are. */}}
- name: TESSERA_SIM_ROOT
  value: /driver-root
{{- else }}
{{- /* Where the NVIDIA runtime starts this pod, it brings the device files along. */}}
- name: NVIDIA_VISIBLE_DEVICES
  value: all
- name: NVIDIA_DRIVER_CAPABILITIES
  value: utility
{{- end }}
{{- with $d.extraEnvs }}{{ toYaml . | nindent 0 }}{{- end }}
{{- end -}}

{{- define "tessera.agentSecurityContext" -}}
{{- $context := deepCopy .Values.devicePlugin.securityContext -}}
{{- /* The API server refuses "privileged" without escalation. */ -}}
{{- if get $context "privileged" -}}{{- $_ := set $context "allowPrivilegeEscalation" true -}}{{- end -}}
{{- toYaml $context -}}
{{- end -}}
