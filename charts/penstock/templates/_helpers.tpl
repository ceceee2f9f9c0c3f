{{/* Names of the release's objects: at most 50 characters, which leaves room for endings. */}}
{{- define "penstock.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-penstock" .Release.Name) (contains "penstock" .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Names of the pre-delete hook's objects. */}}
{{- define "penstock.releaseName" -}}
{{ include "penstock.fullname" . }}-release
{{- end }}

{{/* Names of objects without a namespace: two releases of one name must not share them. */}}
{{- define "penstock.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "penstock.fullname" .) }}
{{- end }}

{{/* Labels that select the operator's pod. They never change. */}}
{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "penstock.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "penstock.workerImage" -}}
{{- $image := .Values.worker.image -}}
{{ $image.repository | default .Values.image.repository }}:{{ $image.tag | default .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What the `restricted` Pod Security level asks of a pod. */}}
{{- define "penstock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Environment that both commands of the operator read. */}}
{{- define "penstock.environment" -}}
- {name: PENSTOCK_NAMESPACES, value: {{ join "," .Values.namespaces | quote }}}
- {name: PENSTOCK_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
- {name: RUST_LOG, value: {{ .Values.log.level | quote }}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- end }}
