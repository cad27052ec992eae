{{/* Values are resolved here (reference 8.1). `$v := include "cni.values" . | fromJson`. */}}

{{/* cni.merge (list TO FROM): FROM over TO, in place. Not mergeOverwrite, which keeps
     TO's value where FROM's is an empty list. */}}
{{- define "cni.merge" -}}
{{- $to := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $to $key)) -}}
{{- include "cni.merge" (list (get $to $key) $value) -}}
{{- else -}}
{{- $_ := set $to $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* cni.layer VALUES: what is below `cni:` over the rest. */}}
{{- define "cni.layer" -}}
{{- $layer := omit (deepCopy .) "cni" -}}
{{- include "cni.merge" (list $layer (.cni | default dict)) -}}
{{- toJson $layer -}}
{{- end -}}

{{/* What the user gave, and nothing else. */}}
{{- define "cni.given" -}}
{{- include "cni.layer" (omit (deepCopy .Values) "_internal_defaults_do_not_set") -}}
{{- end -}}

{{/* cni.preset (list ROOT KIND NAME): a file of files/, or a failure that lists them. */}}
{{- define "cni.preset" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $name := index . 2 -}}
{{- $file := printf "files/%s-%s.yaml" $kind $name -}}
{{- if not ($root.Files.Glob $file) -}}
{{- $names := list -}}
{{- range $path, $_ := $root.Files.Glob (printf "files/%s-*.yaml" $kind) -}}
{{- $names = append $names (base $path | trimPrefix (printf "%s-" $kind) | trimSuffix ".yaml") -}}
{{- end -}}
{{- fail (printf "unknown %s %q: want one of %s" $kind (toString $name) (join ", " $names)) -}}
{{- end -}}
{{- include "cni.layer" ($root.Files.Get $file | fromYaml) -}}
{{- end -}}

{{- define "cni.values" -}}
{{- if .Values.defaults -}}
{{- fail "the key `defaults` may not be set: give the values below it at the top level" -}}
{{- end -}}
{{- $given := include "cni.given" . | fromJson -}}
{{- $global := $given.global | default dict -}}
{{- $values := deepCopy .Values._internal_defaults_do_not_set -}}
{{- with coalesce $given.profile $global.profile -}}
{{- include "cni.merge" (list $values (include "cni.preset" (list $ "profile" .) | fromJson)) -}}
{{- end -}}
{{- with coalesce $given.compatibilityVersion $global.compatibilityVersion -}}
{{- include "cni.merge" (list $values (include "cni.preset" (list $ "compatibility" .) | fromJson)) -}}
{{- end -}}
{{- with coalesce $given.platform $global.platform -}}
{{- include "cni.merge" (list $values (include "cni.preset" (list $ "platform" .) | fromJson)) -}}
{{- $_ := set $values.global "platform" . -}}
{{- end -}}
{{- include "cni.merge" (list $values $given) -}}
{{- toJson $values -}}
{{- end -}}

{{/* Given keys that nothing reads: a typing error, or another Istio chart's value. */}}
{{- define "cni.unknown" -}}
{{- $given := include "cni.given" . | fromJson -}}
{{- $known := .Values._internal_defaults_do_not_set -}}
{{- $unknown := list -}}
{{- range $key, $value := omit $given "global" "profile" "platform" "compatibilityVersion" -}}
{{- if not (hasKey $known $key) -}}
{{- $unknown = append $unknown $key -}}
{{- else if and (kindIs "map" $value) (has $key (list "ambient" "repair" "logging" "livenessProbe" "resourceQuotas" "admissionPolicy" "uninstall" "monitoring")) -}}
{{- range $inner, $_ := $value -}}
{{- if not (hasKey (get $known $key) $inner) -}}
{{- $unknown = append $unknown (printf "%s.%s" $key $inner) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- join ", " $unknown -}}
{{- end -}}
