{{/* cni.hook WEIGHT: what makes an object part of the uninstallation. Of a failure the Job
     stays, to be looked at, until the next try. */}}
{{- define "cni.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | toString | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* cni.cleanupContainer (list ROOT VALUES): root of the host's three directories, with
     no token and no power over the network. */}}
{{- define "cni.cleanupContainer" -}}
{{- $root := index . 0 -}}
{{- $v := index . 1 -}}
image: {{ include "cni.image" (list $root $v) | quote }}
{{- with include "cni.pullPolicy" $v }}{{ . | nindent 0 }}{{ end }}
# Which files are ours depends on how the agent was told to install.
envFrom:
  - configMapRef:
      name: istio-cni-config
      optional: true
{{- if $v.findCniDirs }}
env:
  - name: SLUICE_HOST_ROOT
    value: /host/root
{{- end }}
securityContext:
  privileged: false
  runAsUser: 0
  runAsGroup: 0
  runAsNonRoot: false
  readOnlyRootFilesystem: true
  {{- with include "cni.confinement" $v }}{{ . | nindent 2 }}{{ end }}
  capabilities:
    drop:
      - ALL
    add:
      # As for the agent: the directories may belong to another user.
      - DAC_OVERRIDE
volumeMounts:
  {{- include "cni.hostMounts" $v | nindent 2 }}
{{- end -}}

{{- define "cni.noPower" -}}
securityContext:
  allowPrivilegeEscalation: false
  runAsUser: 65532
  runAsGroup: 65532
  runAsNonRoot: true
  readOnlyRootFilesystem: true
  seccompProfile:
    type: RuntimeDefault
  capabilities:
    drop:
      - ALL
{{- end -}}
