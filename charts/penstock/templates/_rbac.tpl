{{/* What the operator may do with pipelines and what it makes of them. No rule on Secrets. */}}
{{- define "penstock.rules" -}}
- apiGroups: [penstock.dev]
  resources: [ingestpipelines, telemetrystores]
  verbs: [list, watch]
# For the finalizer.
- apiGroups: [penstock.dev]
  resources: [ingestpipelines]
  verbs: [patch]
- apiGroups: [penstock.dev]
  resources: [ingestpipelines/status, telemetrystores/status]
  verbs: [patch]
# So that its objects may name a pipeline or a store as an owner that blocks its deletion.
- apiGroups: [penstock.dev]
  resources: [ingestpipelines/finalizers, telemetrystores/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs, cronjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# The plan and the shards' projections of it are replaced as a whole, by resourceVersion.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts, services]
  verbs: [get, list, watch, create, patch, delete]
# Touching a pod makes the kubelet bring it a new plan.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What the replicas of the operator may do to elect one. A right to create has no name. */}}
{{- define "penstock.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "penstock.fullname" . }}]
  verbs: [get, update]
{{- end }}

{{/* What the pre-delete hook may do with pipelines. */}}
{{- define "penstock.releaseRules" -}}
- apiGroups: [penstock.dev]
  resources: [ingestpipelines]
  verbs: [list, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* Annotations of the pre-delete hook's objects, which are gone when it has ended. */}}
{{- define "penstock.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* A Role or ClusterRole and its binding to a ServiceAccount of the release: a dict of root, kind, name,
     namespace (where it counts; nothing for a ClusterRole), account, annotations, rules. */}}
{{- define "penstock.grant" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  labels: {{- include "penstock.labels" .root | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- . | nindent 4 }}
  {{- end }}
rules:
{{ .rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  labels: {{- include "penstock.labels" .root | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- . | nindent 4 }}
  {{- end }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ .kind }}, name: {{ .name }}}
subjects:
- {kind: ServiceAccount, name: {{ .account }}, namespace: {{ .root.Release.Namespace | quote }}}
{{- end }}
