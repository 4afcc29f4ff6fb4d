{{/* HAMi's values that are accepted and do nothing, as a JSON list of "key: why". Only
     what the user gave is listed: none of these keys is in values.yaml. */}}
{{- define "tessera.withoutEffect" -}}
{{- $found := list -}}
{{- range $key, $why := dict
  "podSecurityPolicy" "Kubernetes has no pod security policies any more"
  "mockDevicePlugin" "use simulate.cards"
  "platform" "give the agent's security context as devicePlugin.securityContext"
  "openshift" "give the agent's service account a security context constraint of yours"
  "selinux" "set the label as devicePlugin.securityContext.seLinuxOptions" -}}
{{- if hasKey $.Values $key -}}{{- $found = append $found (printf "%s: %s" $key $why) -}}{{- end -}}
{{- end -}}
{{- $known := list "nvidia" "ascend" "metax" "hygon" "cambricon" "mthreads" "enflame" "kunlun" "awsneuron" "amd" "vastai" "biren" "intel" "gaudi" "iluvatar" -}}
{{- range $vendor, $values := .Values.devices -}}
{{- if not (has $vendor $known) -}}{{- $found = append $found (printf "devices.%s: no such device class" $vendor) -}}
{{- else if hasKey $values "customresources" -}}{{- $found = append $found (printf "devices.%s.customresources: the names come from the device configuration" $vendor) -}}{{- end -}}
{{- end -}}
{{- range $key := list "networkPolicy" "serviceAccountName" "strategy" -}}
{{- if hasKey $.Values.scheduler $key -}}{{- $found = append $found (printf "scheduler.%s: not supported" $key) -}}{{- end -}}
{{- end -}}
{{- range $key := list "numaRefit" "hostPIDBroker" "nvidiaHookPath" "gdrcopyEnabled" "gdsEnabled" "mofedEnabled" -}}
{{- if get $.Values.devicePlugin $key -}}{{- $found = append $found (printf "devicePlugin.%s: not supported" $key) -}}{{- end -}}
{{- end -}}
{{- range $key := list "managedNodeSelectorEnable" "managedNodeSelector" -}}
{{- if hasKey $.Values.global $key -}}{{- $found = append $found (printf "global.%s: nothing reads it" $key) -}}{{- end -}}
{{- end -}}
{{- if get .Values.scheduler "kubeTimeout" -}}{{- $found = append $found "scheduler.kubeTimeout: every request to the API server has a limit of its own" -}}{{- end -}}
{{- if hasKey .Values.scheduler "patch" -}}{{- $found = append $found "scheduler.patch: Tessera renews its own certificate, no job is needed" -}}{{- end -}}
{{- if hasKey .Values.scheduler.kubeScheduler "extraArgs" -}}{{- $found = append $found "scheduler.kubeScheduler.extraArgs: they are for Kubernetes before 1.22; use extraNewArgs" -}}{{- end -}}
{{- if hasKey .Values.devicePlugin "monitor" -}}{{- $found = append $found "devicePlugin.monitor: the agent serves the metrics itself" -}}{{- end -}}
{{- toJson $found -}}
{{- end -}}
