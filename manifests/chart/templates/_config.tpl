{{/* cni.config (list ROOT VALUES): the agent's environment (reference 8.3). Of its own,
     as the DaemonSet's checksum covers it. */}}
{{- define "cni.config" -}}
{{- $root := index . 0 -}}
{{- $v := index . 1 -}}
CURRENT_AGENT_VERSION: {{ $root.Chart.AppVersion | quote }}
AMBIENT_ENABLED: {{ $v.ambient.enabled | quote }}
AMBIENT_ENABLEMENT_SELECTOR: {{ $v.ambient.enablementSelectors | toYaml | quote }}
AMBIENT_DNS_CAPTURE: {{ $v.ambient.dnsCapture | quote }}
AMBIENT_IPV6: {{ $v.ambient.ipv6 | quote }}
AMBIENT_RECONCILE_POD_RULES_ON_STARTUP: {{ $v.ambient.reconcileIptablesOnStartup | quote }}
ENABLE_AMBIENT_DETECTION_RETRY: {{ $v.ambient.enableAmbientDetectionRetry | quote }}
{{- with $v.cniConfFileName }}
CNI_CONF_NAME: {{ . | quote }}
{{- end }}
# Without a chain there is nothing to own.
ISTIO_OWNED_CNI_CONFIG: {{ and $v.chained $v.istioOwnedCNIConfig | quote }}
{{- with $v.istioOwnedCNIConfigFileName }}
# Istio's chart writes another name, which nothing reads (reference 10.1 #1).
ISTIO_OWNED_CNI_CONFIG_FILENAME: {{ . | quote }}
{{- end }}
CHAINED_CNI_PLUGIN: {{ $v.chained | quote }}
EXCLUDE_NAMESPACES: {{ join "," $v.excludeNamespaces | quote }}
REPAIR_ENABLED: {{ $v.repair.enabled | quote }}
REPAIR_LABEL_PODS: {{ $v.repair.labelPods | quote }}
REPAIR_DELETE_PODS: {{ $v.repair.deletePods | quote }}
REPAIR_REPAIR_PODS: {{ $v.repair.repairPods | quote }}
REPAIR_INIT_CONTAINER_NAME: {{ $v.repair.initContainerName | quote }}
REPAIR_BROKEN_POD_LABEL_KEY: {{ $v.repair.brokenPodLabelKey | quote }}
REPAIR_BROKEN_POD_LABEL_VALUE: {{ $v.repair.brokenPodLabelValue | quote }}
NATIVE_NFTABLES: {{ $v.global.nativeNftables | quote }}
{{- with $v.backend }}
{{- if not (has . (list "auto" "nftables" "iptables")) }}
{{- fail (printf "backend %q: want auto, nftables or iptables" .) }}
{{- end }}
SLUICE_BACKEND: {{ . | quote }}
{{- end }}
MONITORING_PORT: {{ int $v.monitoringPort | quote }}
SLUICE_HEALTH_ADDRESS: {{ printf "%s:%s" (eq "true" (include "cni.hostNetwork" $v) | ternary "127.0.0.1" "") (include "cni.healthPort" $v) | quote }}
# Without /host/proc the agent cannot see it.
SLUICE_AGENT_HOST_NETWORK: {{ eq "true" (include "cni.hostNetwork" $v) | quote }}
{{- if $v.findCniDirs }}
SLUICE_HOST_ROOT: /host/root
{{- end }}
{{- range $key, $value := $v.env }}
{{ $key | quote }}: {{ $value | quote }}
{{- end }}
{{- end -}}
