{{- define "tessera.webhookAnnotations" -}}
{{- if .Values.scheduler.certManager.enabled -}}
annotations:
  cert-manager.io/inject-ca-from: {{ include "tessera.namespace" . }}/{{ include "tessera.certificateSecret" . }}
{{- end -}}
{{- end -}}

{{/* dict: root, path */}}
{{- define "tessera.webhookCommon" -}}
{{- $root := .root -}}
{{- $hook := $root.Values.scheduler.admissionWebhook -}}
admissionReviewVersions: [v1, v1beta1]
matchPolicy: Equivalent
sideEffects: None
failurePolicy: {{ $hook.failurePolicy }}
timeoutSeconds: {{ int $hook.timeoutSeconds }}
clientConfig:
  {{- if $hook.customURL.enabled }}
  url: https://{{ $hook.customURL.host }}:{{ int $hook.customURL.port }}{{ .path }}
  {{- else }}
  service:
    name: {{ include "tessera.scheduler" $root }}
    namespace: {{ include "tessera.namespace" $root }}
    path: {{ .path }}
    port: {{ int $root.Values.scheduler.service.httpPort }}
  {{- end }}
  {{- with $hook.caBundle }}
  caBundle: {{ b64enc . }}
  {{- end }}
{{- if $hook.manageNamespaceSelector }}
namespaceSelector:
  {{- with $hook.namespaceSelector.matchLabels }}
  matchLabels:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  matchExpressions:
    - key: hami.io/webhook
      operator: NotIn
      values: [ignore]
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values:
        {{- $skip := list "kube-system" }}
        {{- if $hook.excludeReleaseNamespace }}{{ $skip = append $skip (include "tessera.namespace" $root) }}{{ end }}
        {{- range concat $skip ($hook.whitelistNamespaces | default list) | uniq }}
        - {{ . }}
        {{- end }}
    {{- with $hook.namespaceSelector.matchExpressions }}{{ toYaml . | nindent 4 }}{{- end }}
{{- end }}
objectSelector:
  {{- with $hook.objectSelector.matchLabels }}
  matchLabels:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  matchExpressions:
    - key: hami.io/webhook
      operator: NotIn
      values: [ignore]
    {{- with $hook.objectSelector.matchExpressions }}{{ toYaml . | nindent 4 }}{{- end }}
{{- end -}}
