{{- define "tessera.schedulerArgs" -}}
{{- $s := .Values.scheduler -}}
- --http_bind=127.0.0.1:{{ int $s.extender.port }}
{{- if $s.admissionWebhook.enabled }}
- --webhook-bind=0.0.0.0:{{ int $s.service.httpTargetPort }}
{{- if include "tessera.ownCertificate" . }}
- --tls-secret={{ include "tessera.webhookSecret" . }}
- --webhook-configuration={{ include "tessera.webhook" . }}
- --webhook-service={{ include "tessera.scheduler" . }}
{{- if $s.admissionWebhook.customURL.enabled }}
- --tls-dns-name={{ $s.admissionWebhook.customURL.host }}
{{- end }}
{{- else }}
- --cert_file=/tls/tls.crt
- --key_file=/tls/tls.key
{{- end }}
{{- end }}
- --namespace={{ include "tessera.namespace" . }}
- --device-config-file=/config/device-config.yaml
- --scheduler-name={{ .Values.schedulerName }}
- --node-scheduler-policy={{ $s.defaultSchedulerPolicy.nodeSchedulerPolicy }}
{{- with $s.defaultSchedulerPolicy.gpuSchedulerPolicy }}
- --gpu-scheduler-policy={{ . }}
{{- end }}
{{- if .Values.devices.ascend.enabled }}
- --enable-ascend=true
{{- end }}
{{- if .Values.devices.iluvatar.enabled }}
- --enable-iluvatar=true
{{- end }}
- --filter-mode={{ $s.filterMode }}
- --write-at={{ $s.writeAt }}
- --metrics-bind-address={{ $s.metricsBindAddress }}
- --force-overwrite-default-scheduler={{ $s.forceOverwriteDefaultScheduler }}
- --refuse-not-enabled={{ $s.refuseNotEnabled }}
- --leader-elect={{ $s.leaderElect }}
{{- if and $s.leaderElect $s.kubeScheduler.enabled }}
- --leader-elect-resource-name={{ .Values.schedulerName }}
- --leader-elect-resource-namespace={{ include "tessera.namespace" . }}
{{- end }}
{{- with $s.nodeLabelSelector }}
{{- $pairs := list }}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s=%s" $key $value) }}{{ end }}
- --node-label-selector={{ join "," $pairs }}
{{- end }}
{{- with $s.nodeLockExpire }}
- --node-lock-timeout={{ . }}
{{- end }}
{{- if ne (toString $s.nodeLockRetryTimeout) "" }}
- --node-lock-retry-timeout={{ $s.nodeLockRetryTimeout }}
{{- end }}
{{- with $s.kubeQPS }}
- --kube-qps={{ . }}
{{- end }}
{{- with $s.kubeBurst }}
- --kube-burst={{ . }}
{{- end }}
{{- if .Values.legacyMetrics }}
- --legacy-metrics=true
{{- end }}
{{- range $s.extender.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The health pages are on the metrics port: it needs no certificate. */}}
{{- define "tessera.schedulerProbes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  failureThreshold: 6
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 2
  failureThreshold: 3
  timeoutSeconds: 2
{{- end -}}
