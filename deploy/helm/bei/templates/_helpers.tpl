{{- define "bei.name" -}}
{{- contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "bei.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bei.labels" -}}
{{ include "bei.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The Secret that has the keys; empty if there is none. */ -}}
{{- define "bei.secret" -}}
{{- if .Values.secrets.existing }}{{ .Values.secrets.existing }}{{ else if or .Values.secrets.apiKey .Values.secrets.hfToken }}{{ include "bei.name" . }}{{ end -}}
{{- end }}
