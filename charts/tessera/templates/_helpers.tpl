{{/* ------------------------------------------------------------ names */}}
{{- define "tessera.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tessera.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tessera.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tessera.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tessera.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "tessera.scheduler" -}}{{ include "tessera.fullname" . }}-scheduler{{- end -}}
{{- define "tessera.agent" -}}{{ include "tessera.fullname" . }}-device-plugin{{- end -}}
{{- define "tessera.deviceConfig" -}}{{ include "tessera.scheduler" . }}-device{{- end -}}
{{- define "tessera.webhook" -}}{{ include "tessera.fullname" . }}-webhook{{- end -}}
{{- define "tessera.webhookSecret" -}}{{ include "tessera.fullname" . }}-webhook-tls{{- end -}}
{{- define "tessera.extenderLease" -}}{{ .Values.schedulerName }}-extender{{- end -}}

{{- define "tessera.nodeConfig" -}}
{{- default (include "tessera.agent" .) .Values.devicePlugin.nodeConfiguration.externalConfigName -}}
{{- end -}}

{{/* ------------------------------------------------------------ labels */}}
{{- define "tessera.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tessera.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tessera.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "tessera.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The component labels follow the name, so that with nameOverride "hami" the selectors
     are those of an installed HAMi release and an upgrade in place is possible. */}}
{{- define "tessera.schedulerSelector" -}}
app.kubernetes.io/component: {{ include "tessera.name" . }}-scheduler
{{ include "tessera.selectorLabels" . }}
{{- end -}}

{{- define "tessera.agentSelector" -}}
app.kubernetes.io/component: {{ include "tessera.name" . }}-device-plugin
{{ include "tessera.selectorLabels" . }}
{{- end -}}

{{- define "tessera.metadata" -}}
namespace: {{ include "tessera.namespace" .root }}
labels:
  app.kubernetes.io/component: {{ include "tessera.name" .root }}-{{ .component }}
  {{- include "tessera.labels" .root | nindent 2 }}
{{- end -}}

{{/* ------------------------------------------------------------ images */}}
{{/* dict: image, tag (used when image.tag is empty), global */}}
{{- define "tessera.image" -}}
{{- $registry := .image.registry | default "" -}}
{{- if .global.imageRegistry -}}{{- $registry = .global.imageRegistry -}}{{- end -}}
{{- $tag := .image.tag | default .tag -}}
{{- if $registry -}}{{ $registry }}/{{- end -}}{{ .image.repository }}:{{ $tag }}
{{- end -}}

{{- define "tessera.schedulerImage" -}}
{{- include "tessera.image" (dict "image" .Values.scheduler.extender.image "tag" (default .Chart.AppVersion .Values.global.imageTag) "global" .Values.global) -}}
{{- end -}}

{{- define "tessera.agentImage" -}}
{{- include "tessera.image" (dict "image" .Values.devicePlugin.image "tag" (default .Chart.AppVersion .Values.global.imageTag) "global" .Values.global) -}}
{{- end -}}

{{/* Distributions append to the version (v1.36.2+k3s1); images are tagged without. */}}
{{- define "tessera.kubeSchedulerImage" -}}
{{- $version := regexFind "^v[0-9]+\\.[0-9]+\\.[0-9]+" .Capabilities.KubeVersion.Version -}}
{{- include "tessera.image" (dict "image" .Values.scheduler.kubeScheduler.image "tag" $version "global" .Values.global) -}}
{{- end -}}

{{/* list of image sections -> imagePullSecrets, or nothing */}}
{{- define "tessera.pullSecrets" -}}
{{- $names := list -}}
{{- range .global.imagePullSecrets -}}
{{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- range .images -}}{{- range .pullSecrets -}}{{- $names = append $names . -}}{{- end -}}{{- end -}}
{{- with ($names | uniq) -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* ------------------------------------------------------------ paths and ports */}}
{{- define "tessera.libPath" -}}{{ trimSuffix "/" .Values.global.gpuHookPath }}/vgpu{{- end -}}

{{- define "tessera.pluginPath" -}}
{{- default (printf "%s/device-plugins" (trimSuffix "/" .Values.devicePlugin.kubeletRoot)) .Values.devicePlugin.pluginPath -}}
{{- end -}}

{{- define "tessera.simulated" -}}
{{- if .Values.simulate.cards -}}yes{{- end -}}
{{- end -}}

{{- define "tessera.driverRoot" -}}
{{- $root := .Values.devicePlugin.nvidiaDriverRoot | default "/" -}}
{{- if include "tessera.simulated" . -}}{{ .Values.simulate.root }}
{{- else if eq $root "auto" -}}/
{{- else -}}{{ $root }}
{{- end -}}
{{- end -}}

{{- define "tessera.kubeSchedulerPort" -}}
{{- if .Values.scheduler.kubeScheduler.securePort -}}
{{- int .Values.scheduler.kubeScheduler.securePort -}}
{{- else -}}
{{- ternary 10269 10259 .Values.scheduler.hostNetwork -}}
{{- end -}}
{{- end -}}

{{- define "tessera.metricsPort" -}}
{{- regexFind "[0-9]+$" .Values.scheduler.metricsBindAddress -}}
{{- end -}}

{{- define "tessera.agentHostNetwork" -}}
{{- if or .Values.agent.hostNetwork .Values.devicePlugin.hostNetwork -}}yes{{- end -}}
{{- end -}}

{{- define "tessera.leaderElect" -}}
{{- if .Values.scheduler.leaderElect -}}yes{{- end -}}
{{- end -}}

{{- define "tessera.replicas" -}}
{{- ternary (int .Values.scheduler.replicas) 1 (eq (include "tessera.leaderElect" .) "yes") -}}
{{- end -}}

{{- define "tessera.kubeMinor" -}}
{{- regexReplaceAll "[^0-9].*$" .Capabilities.KubeVersion.Minor "" -}}
{{- end -}}

{{/* ------------------------------------------------------------ what Tessera manages */}}
{{/* The `nvidia` section as it takes effect, as JSON: from device-config.content where
     that is given, else from the values. Only the keys that other objects depend on. */}}
{{- define "tessera.nvidia" -}}
{{- $content := dig "device-config" "content" "" (.Values | toJson | fromJson) -}}
{{- if $content -}}
{{- $parsed := fromYaml $content -}}
{{- if hasKey $parsed "Error" -}}
{{- fail (printf "\n\ndevice-config.content is not YAML: %s\n" $parsed.Error) -}}
{{- end -}}
{{- get $parsed "nvidia" | default dict | toJson -}}
{{- else -}}
{{- dict
  "resourceCountName" .Values.resourceName
  "resourceMemoryName" .Values.resourceMem
  "resourceMemoryPercentageName" .Values.resourceMemPercentage
  "resourceCoreName" .Values.resourceCores
  "resourcePriorityName" .Values.resourcePriority
  "overwriteEnv" (eq (toString .Values.scheduler.overwriteEnv) "true")
  "gpuCorePolicy" .Values.devices.nvidia.gpuCorePolicy | toJson -}}
{{- end -}}
{{- end -}}

{{- define "tessera.managedResources" -}}
{{- $nvidia := include "tessera.nvidia" . | fromJson -}}
{{- $names := list -}}
{{- range $key := list "resourceCountName" "resourceMemoryName" "resourceMemoryPercentageName" "resourceCoreName" "resourcePriorityName" -}}
{{- with get $nvidia $key -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- $names = concat $names (include "tessera.sectionsInEffect" . | fromJson | include "tessera.resourceNames" | fromJsonArray) -}}
{{- toJson (uniq $names) -}}
{{- end -}}

{{/* The managed names that nodes state amounts of and that kube-scheduler therefore counts itself, as
     under HAMi: the makers' plugins offer memory and compute of Cambricon's and Moore Threads' cards. */}}
{{- define "tessera.countedResources" -}}
{{- $sections := include "tessera.sectionsInEffect" . | fromJson -}}
{{- $names := list -}}
{{- range $class := list "cambricon" "mthreads" -}}
{{- range $key := list "resourceMemoryName" "resourceCoreName" -}}
{{- with dig $class $key "" $sections -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* The names of the classes that are off. The webhook sees pods with them too, to say so. */}}
{{- define "tessera.notEnabledResources" -}}
{{- $names := list -}}
{{- if .Values.scheduler.refuseNotEnabled -}}
{{- $values := .Values | toJson | fromJson -}}
{{- range $class, $_ := omit $values.devices "nvidia" -}}
{{- $_ := set (get $values.devices $class) "enabled" true -}}
{{- end -}}
{{- $all := include "tessera.sections" (dict "Values" $values) | fromYaml | include "tessera.resourceNames" | fromJsonArray -}}
{{- $managed := include "tessera.managedResources" . | fromJsonArray -}}
{{- range $all -}}
{{- if not (has . $managed) -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson (uniq $names) -}}
{{- end -}}

{{- define "tessera.ownCertificate" -}}
{{- if not (or .Values.scheduler.certManager.enabled .Values.scheduler.admissionWebhook.tlsSecretName) -}}yes{{- end -}}
{{- end -}}

{{/* Secret that holds the webhook's certificate when it is not Tessera's own. */}}
{{- define "tessera.certificateSecret" -}}
{{- if .Values.scheduler.certManager.enabled -}}{{ include "tessera.fullname" . }}-scheduler-tls
{{- else -}}{{ .Values.scheduler.admissionWebhook.tlsSecretName }}
{{- end -}}
{{- end -}}

{{/* Matching conditions need Kubernetes 1.28, and must be off where every container is
     changed, with or without a request. */}}
{{- define "tessera.matchConditions" -}}
{{- $nvidia := include "tessera.nvidia" . | fromJson -}}
{{- $all := or (get $nvidia "overwriteEnv") (ne (get $nvidia "gpuCorePolicy" | default "default") "default") -}}
{{- $mode := toString .Values.scheduler.admissionWebhook.matchConditions -}}
{{- if eq $mode "on" -}}yes
{{- else if and (eq $mode "auto") (ge (include "tessera.kubeMinor" . | int) 28) (not $all) -}}yes
{{- end -}}
{{- end -}}

{{- define "tessera.ownNodePolicy" -}}
{{- $mode := toString .Values.agent.restrictToOwnNode -}}
{{- if eq $mode "true" -}}yes
{{- else if and (eq $mode "auto") (ge (include "tessera.kubeMinor" . | int) 32) -}}yes
{{- end -}}
{{- end -}}
