{{/* Contradictions that a schema cannot see. Each text names the values and what to do. */}}
{{- define "tessera.checks" -}}
{{- $problems := list -}}
{{- $lib := include "tessera.libPath" . -}}
{{- if and .Values.devicePlugin.libPath (ne (trimSuffix "/" .Values.devicePlugin.libPath) $lib) -}}
{{- $problems = append $problems (printf "devicePlugin.libPath is %q, but global.gpuHookPath makes it %q: leave libPath empty, or change gpuHookPath" .Values.devicePlugin.libPath $lib) -}}
{{- end -}}
{{- $ctr := dig "monitor" "ctrPath" "" .Values.devicePlugin -}}
{{- if and $ctr (ne (trimSuffix "/" $ctr) (printf "%s/containers" $lib)) -}}
{{- $problems = append $problems (printf "devicePlugin.monitor.ctrPath is %q, but global.gpuHookPath makes it %q: leave ctrPath out, or change gpuHookPath" $ctr (printf "%s/containers" $lib)) -}}
{{- end -}}
{{- if and (gt (int .Values.scheduler.replicas) 1) (not .Values.scheduler.leaderElect) -}}
{{- $problems = append $problems (printf "scheduler.replicas is %d, but scheduler.leaderElect is false: two schedulers would place the same pod; set leaderElect: true or replicas: 1" (int .Values.scheduler.replicas)) -}}
{{- end -}}
{{- if and (eq .Values.scheduler.filterMode "all") (eq .Values.scheduler.writeAt "filter") -}}
{{- $problems = append $problems "scheduler.filterMode is \"all\" and scheduler.writeAt is \"filter\": with \"all\" the node is not known at filter; set writeAt: bind" -}}
{{- end -}}
{{- if and .Values.simulate.players.enabled (not .Values.simulate.cards) -}}
{{- $problems = append $problems "simulate.players.enabled is true, but simulate.cards is empty: name the cards to play, for example [{vendor: ascend, model: 910B3}]" -}}
{{- end -}}
{{- if and (kindIs "slice" .Values.simulate.cards) (not .Values.simulate.players.enabled) -}}
{{- range .Values.simulate.cards -}}
{{- if ne (get . "vendor" | default "nvidia" | toString) "nvidia" -}}
{{- $problems = append $problems (printf "simulate.cards names a card of %q, which a player shows: set simulate.players.enabled to true, or leave the card out" (get . "vendor" | toString)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if lt (int .Values.scheduler.podMaxBackoffSeconds) (int .Values.scheduler.podInitialBackoffSeconds) -}}
{{- $problems = append $problems (printf "scheduler.podMaxBackoffSeconds (%d) is less than podInitialBackoffSeconds (%d): raise it" (int .Values.scheduler.podMaxBackoffSeconds) (int .Values.scheduler.podInitialBackoffSeconds)) -}}
{{- end -}}
{{- if .Values.scheduler.profiles -}}
{{- $found := false -}}
{{- range .Values.scheduler.profiles -}}{{- if eq (get . "schedulerName" | toString) $.Values.schedulerName -}}{{- $found = true -}}{{- end -}}{{- end -}}
{{- if not $found -}}
{{- $problems = append $problems (printf "scheduler.profiles has no entry with schedulerName %q: pods are given that name and nobody would schedule them; add one, or use extraProfiles" .Values.schedulerName) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.scheduler.admissionWebhook.tlsSecretName (not .Values.scheduler.admissionWebhook.caBundle) -}}
{{- $problems = append $problems "scheduler.admissionWebhook.tlsSecretName is set without caBundle: the API server could not check the certificate; give the CA in PEM as caBundle" -}}
{{- end -}}
{{- if and .Values.scheduler.admissionWebhook.tlsSecretName .Values.scheduler.certManager.enabled -}}
{{- $problems = append $problems "scheduler.admissionWebhook.tlsSecretName and scheduler.certManager.enabled are both set: choose one source of the certificate" -}}
{{- end -}}
{{- if and .Values.scheduler.extender.port (eq (int .Values.scheduler.extender.port) (int .Values.scheduler.service.httpTargetPort)) -}}
{{- $problems = append $problems (printf "scheduler.extender.port and scheduler.service.httpTargetPort are both %d: give them different ports" (int .Values.scheduler.extender.port)) -}}
{{- end -}}
{{- if and .Values.scheduler.hostNetwork (lt (int .Values.scheduler.service.httpTargetPort) 1024) -}}
{{- $problems = append $problems (printf "scheduler.service.httpTargetPort is %d with scheduler.hostNetwork: the scheduler is not root and cannot open it on the node; take a port above 1023" (int .Values.scheduler.service.httpTargetPort)) -}}
{{- end -}}
{{- if ne .Values.devicePlugin.migStrategy "none" -}}
{{- $problems = append $problems (printf "devicePlugin.migStrategy is %q: this version offers no MIG instances; set it to none" .Values.devicePlugin.migStrategy) -}}
{{- end -}}
{{- if and .Values.devicePlugin.createRuntimeClass (not .Values.devicePlugin.runtimeClassName) -}}
{{- $problems = append $problems "devicePlugin.createRuntimeClass is true, but devicePlugin.runtimeClassName is empty: name the class, usually \"nvidia\"" -}}
{{- end -}}
{{- if regexMatch "^v2\\.[0-9]+" .Values.global.imageTag -}}
{{- $problems = append $problems (printf "global.imageTag is %q, which is a tag of HAMi's image: remove it" .Values.global.imageTag) -}}
{{- end -}}
{{- range $key, $image := dict "scheduler.extender.image" .Values.scheduler.extender.image "devicePlugin.image" .Values.devicePlugin.image -}}
{{- if hasPrefix "projecthami/" $image.repository -}}
{{- $problems = append $problems (printf "%s.repository is %q, which is HAMi's image: remove it" $key $image.repository) -}}
{{- end -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\nThese values of the tessera chart contradict each other:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end -}}
