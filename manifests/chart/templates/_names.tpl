{{/* cni.labels (list ROOT VALUES): on every object (reference 8.3). */}}
{{- define "cni.labels" -}}
{{- $root := index . 0 -}}
{{- $v := index . 1 -}}
release: {{ $root.Release.Name | quote }}
istio.io/rev: {{ $v.revision | default "default" | quote }}
install.operator.istio.io/owning-resource: {{ $v.ownerName | default "unknown" | quote }}
operator.istio.io/component: Cni
app.kubernetes.io/name: istio-cni
app.kubernetes.io/managed-by: {{ $root.Release.Service | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* cni.image (list ROOT VALUES) */}}
{{- define "cni.image" -}}
{{- $root := index . 0 -}}
{{- $v := index . 1 -}}
{{- if contains "/" $v.image -}}
{{- $v.image -}}
{{- else -}}
{{- $tag := coalesce $v.tag $v.global.tag $root.Chart.AppVersion | toString -}}
{{- $variant := coalesce $v.variant $v.global.variant -}}
{{- printf "%s/%s:%s" (coalesce $v.hub $v.global.hub) $v.image $tag -}}
{{- with $variant }}-{{ . }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "cni.pullPolicy" -}}
{{- with coalesce .pullPolicy .global.imagePullPolicy -}}
imagePullPolicy: {{ . }}
{{- end -}}
{{- end -}}

{{/* cni.binDir (list ROOT VALUES) */}}
{{- define "cni.binDir" -}}
{{- $root := index . 0 -}}
{{- $v := index . 1 -}}
{{- if $v.cniBinDir -}}
{{- $v.cniBinDir -}}
{{- else if contains "-gke" $root.Capabilities.KubeVersion.GitVersion -}}
/home/kubernetes/bin
{{- else -}}
/opt/cni/bin
{{- end -}}
{{- end -}}

{{/* "true" when the agent shares the host's network. */}}
{{- define "cni.hostNetwork" -}}
{{- if or .hostNetwork (and .ambient.enabled .ambient.shareHostNetworkNamespace) -}}true{{- end -}}
{{- end -}}

{{- define "cni.healthPort" -}}
{{- if int .healthPort -}}
{{- int .healthPort -}}
{{- else if include "cni.hostNetwork" . -}}
15018
{{- else -}}
8000
{{- end -}}
{{- end -}}

{{/* /host/proc: to find namespaces of pods that the plugin did not tell of, and, from a
     network of its own, the host's. */}}
{{- define "cni.hostProc" -}}
{{- if or (and .repair.enabled .repair.repairPods) .ambient.enabled (not (include "cni.hostNetwork" .)) -}}true{{- end -}}
{{- end -}}

{{/* global.resourceScope: what belongs to no namespace, and the rest. */}}
{{- define "cni.clusterScope" -}}
{{- if has .global.resourceScope (list "all" "cluster") -}}true
{{- else if ne .global.resourceScope "namespace" -}}
{{- fail (printf "global.resourceScope %q: want all, cluster or namespace" .global.resourceScope) -}}
{{- end -}}
{{- end -}}

{{- define "cni.namespaceScope" -}}
{{- if has .global.resourceScope (list "all" "namespace") -}}true
{{- else if ne .global.resourceScope "cluster" -}}
{{- fail (printf "global.resourceScope %q: want all, cluster or namespace" .global.resourceScope) -}}
{{- end -}}
{{- end -}}

{{/* cni.confinement VALUES: the lines of a securityContext that depend on the platform. */}}
{{- define "cni.confinement" -}}
{{- $lines := dict -}}
{{- with .seccompProfile }}{{ $_ := set $lines "seccompProfile" . }}{{ end -}}
{{- with .seLinuxOptions }}{{ $_ := set $lines "seLinuxOptions" (merge (dict) . (dict "type" "spc_t")) }}{{ end -}}
{{- with $lines }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* cni.appArmor (list ROOT VALUES FORM): whether it is said by the annotation, by the
     field, which Kubernetes has from 1.30 on, or by both. */}}
{{- define "cni.appArmor" -}}
{{- $field := semverCompare ">=1.30-0" (index . 0).Capabilities.KubeVersion.Version -}}
{{- $annotation := or (index . 1).useAppArmorAnnotation (not $field) -}}
{{- if eq (index . 2) "field" | ternary $field $annotation -}}true{{- end -}}
{{- end -}}

{{/* cni.hostVolumes (list ROOT VALUES), cni.hostMounts VALUES: what the agent and cleanup
     both write to. */}}
{{- define "cni.hostVolumes" -}}
{{- $root := index . 0 -}}
{{- $v := index . 1 -}}
{{- if $v.findCniDirs -}}
- name: host-root
  hostPath:
    path: /
    type: Directory
{{- else -}}
- name: cni-bin-dir
  hostPath:
    path: {{ include "cni.binDir" (list $root $v) }}
- name: cni-net-dir
  hostPath:
    path: {{ $v.cniConfDir }}
{{- end }}
- name: cni-socket-dir
  hostPath:
    path: /var/run/istio-cni
    type: DirectoryOrCreate
{{- end -}}

{{- define "cni.hostMounts" -}}
{{- if .findCniDirs -}}
- name: host-root
  mountPath: /host/root
  mountPropagation: HostToContainer
{{- else -}}
- name: cni-bin-dir
  mountPath: /host/opt/cni/bin
- name: cni-net-dir
  mountPath: /host/etc/cni/net.d
{{- end }}
- name: cni-socket-dir
  mountPath: /var/run/istio-cni
{{- end -}}
