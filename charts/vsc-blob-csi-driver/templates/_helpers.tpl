{{/* Names, labels, images: what several templates share. */}}

{{- define "vsc-blob.driver" -}}vsc-blob.csi.azure.com{{- end }}

{{- define "vsc-blob.fullname" -}}
{{- .Values.fullnameOverride | default "vsc-blob-csi" | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* Immutable part of the labels; call with (dict "root" $ "component" "node"). */}}
{{- define "vsc-blob.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* All labels; "extra" are labels of the values. Ours win, so that no key stands there twice. */}}
{{- define "vsc-blob.labels" -}}
{{- $ours := fromYaml (include "vsc-blob.selector" .) }}
{{- $_ := set $ours "app.kubernetes.io/version" (toString .root.Chart.AppVersion) }}
{{- $_ := set $ours "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- toYaml (merge $ours (deepCopy (.extra | default dict)) (deepCopy .root.Values.commonLabels)) }}
{{- end }}

{{/* Where the runbook of an alert is; call with (dict "root" $ "alert" NAME). */}}
{{- define "vsc-blob.runbook" -}}
{{- with .root.Values.prometheusRule.runbooks -}}
runbook_url: {{ . }}#{{ lower $.alert }}
{{- else -}}
runbook: docs/runbooks.md of the driver, {{ .alert }}
{{- end }}
{{- end }}

{{/* Labels of pods beside ours; call with (dict "root" $ "own" .Values.node.podLabels). */}}
{{- define "vsc-blob.podLabels" -}}
{{- $labels := deepCopy .own }}
{{- if .root.Values.workloadIdentity.clientID }}{{ $_ := set $labels "azure.workload.identity/use" "true" }}{{ end }}
{{- toYaml $labels }}
{{- end }}

{{- define "vsc-blob.image" -}}
{{- $repository := required "image.repository: it is not set. There is no published image: build one with deploy/image, push it to your registry, and name it here." .Values.image.repository }}
{{- if .Values.image.digest }}{{ $repository }}@{{ .Values.image.digest }}
{{- else }}{{ $repository }}:{{ .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-fips" "" .Values.fips)) }}
{{- end }}
{{- end }}

{{- define "vsc-blob.provisionerImage" -}}
{{- with .Values.csiProvisioner.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* Environment of every container that runs our program; may be empty. */}}
{{- define "vsc-blob.programEnv" -}}
{{- with .Values.logLevel }}
- name: RUST_LOG
  value: {{ . | quote }}
{{- end }}
{{- if .Values.fips }}
- name: VSC_BLOB_CSI_REQUIRE_FIPS
  value: "true"
{{- end }}
{{- end }}

{{/* Environment of node and controller; call with (dict "root" $ "env" .Values.node.env). */}}
{{- define "vsc-blob.env" -}}
- name: NODE_ID
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
# Where probes ask, in IPv4 and IPv6 clusters;
# with the node's network only this address of the node.
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- include "vsc-blob.programEnv" .root }}
{{- if .root.Values.caBundle.configMap }}
# Both are read; the first is the image's own.
- name: SSL_CERT_DIR
  value: /etc/ssl/certs:/etc/vsc-blob-csi/ca
{{- end }}
{{- with .root.Values.proxy.https }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
{{- end }}
{{- with .root.Values.proxy.noProxy }}
- name: NO_PROXY
  value: {{ . | quote }}
{{- end }}
{{- with .env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Pod of a hook's Job: the program with a service account of its own and no other right. Call with
(dict "root" $ "component" "uninstall" "args" (list "cluster-cleanup")). */}}
{{- define "vsc-blob.hookPod" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "vsc-blob.labels" (dict "root" .root "component" .component) | nindent 4 }}
spec:
  serviceAccountName: {{ include "vsc-blob.fullname" .root }}-{{ .component }}
  restartPolicy: Never
  enableServiceLinks: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.controller.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.controller.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ first .args }}
      image: {{ include "vsc-blob.image" .root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args:
        - --log-format={{ $values.logFormat }}
        {{- range .args }}
        - {{ . }}
        {{- end }}
      {{- with include "vsc-blob.programEnv" .root }}
      env:
        {{- . | trim | nindent 8 }}
      {{- end }}
      terminationMessagePolicy: FallbackToLogsOnError
      resources:
        requests: {cpu: 10m, memory: 32Mi}
        limits: {memory: 128Mi}
      securityContext:
        privileged: false
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
{{- end }}

{{/* As what the kubelet may mount volumes; a list as JSON. */}}
{{- define "vsc-blob.lifecycleModes" -}}
{{- ternary (list "Persistent" "Ephemeral") (list "Persistent") .Values.csiDriver.inlineVolumes | toJson }}
{{- end }}

{{- define "vsc-blob.caVolume" -}}
{{- with .Values.caBundle }}
{{- if .configMap -}}
- name: ca-bundle
  configMap:
    name: {{ .configMap }}
    items:
      - key: {{ .key }}
        path: ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "vsc-blob.caMount" -}}
{{- if .Values.caBundle.configMap -}}
- name: ca-bundle
  mountPath: /etc/vsc-blob-csi/ca
  readOnly: true
{{- end }}
{{- end }}

{{/* Call with (dict "root" $ "own" .Values.node.serviceAccountAnnotations). */}}
{{- define "vsc-blob.serviceAccountAnnotations" -}}
{{- $annotations := dict }}
{{- with .root.Values.workloadIdentity }}
{{- if .clientID }}{{ $_ := set $annotations "azure.workload.identity/client-id" .clientID }}{{ end }}
{{- if .tenantID }}{{ $_ := set $annotations "azure.workload.identity/tenant-id" .tenantID }}{{ end }}
{{- end }}
{{- $annotations = merge (deepCopy .own) $annotations }}
{{- with $annotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A quantity of memory in whole MiB, in each way that Kubernetes writes one ("512MiB", "1.2Gi", "600M", "6e8", 629145600); -1 for
what is none. */}}
{{- define "vsc-blob.mib" -}}
{{- $size := toString . | trimSuffix "B" }}
{{- $number := regexFind "^([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([eE][-+]?[0-9]+)?" $size }}
{{- $unit := trimPrefix $number $size }}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 }}
{{- if and $number (hasKey $units $unit) }}
{{- divf (mulf (float64 $number) (get $units $unit)) 1048576 | floor | int64 }}
{{- else }}-1{{ end }}
{{- end }}

{{/* What values-aks.yaml leaves to fill in. */}}
{{- define "vsc-blob.checkFilledIn" -}}
{{- if hasPrefix "REGISTRY." .Values.image.repository }}
{{- fail (printf "image.repository: %s: fill in the name of your registry" .Values.image.repository) }}
{{- end }}
{{- range $class := .Values.storageClasses }}
{{- range $key, $value := $class.parameters }}
{{- if has (toString $value) (list "ACCOUNT" "CONTAINER" "CLIENT-ID") }}
{{- fail (printf "storageClasses: class %s, parameter %s: %s is to be filled in (or the class removed: storageClasses: [])" $class.name $key $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The program refuses to start with more volumes than the budget serves: one for each 4 MiB. */}}
{{- define "vsc-blob.checkVolumes" -}}
{{- $budget := include "vsc-blob.mib" .Values.node.budget | int }}
{{- $served := div $budget 4 | int }}
{{- if and (gt $budget 0) (gt (.Values.node.maxVolumes | int) $served) }}
{{- fail (printf "node.maxVolumes: node.budget %s serves %d volumes, not %d; make the budget %dMiB or more, or leave node.maxVolumes at 0" .Values.node.budget $served (.Values.node.maxVolumes | int) (mul 4 .Values.node.maxVolumes)) }}
{{- end }}
{{- end }}

{{/* The limit must leave room beside the budget, or the kernel kills the program and with it all mounts of the node. */}}
{{- define "vsc-blob.checkMemory" -}}
{{- $limits := .Values.node.resources.limits | default dict }}
{{- if hasKey $limits "memory" }}
{{- $limit := include "vsc-blob.mib" $limits.memory | int64 }}
{{- $needed := add 256 (include "vsc-blob.mib" .Values.node.budget | int64) }}
{{- if or (lt $limit 0) (hasSuffix "B" (toString $limits.memory)) }}
{{- fail (printf "node.resources.limits.memory: %v is no quantity of memory; write for instance %dMi" $limits.memory $needed) }}
{{- else if lt $limit $needed }}
{{- fail (printf "node.resources.limits.memory: %v is too little for node.budget %s; make it %dMi or more, or the budget smaller" $limits.memory .Values.node.budget $needed) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Ports of what the values name, beside those of the policy: call with (dict "root" $ "ports" .ports). JSON of a list. */}}
{{- define "vsc-blob.storagePorts" -}}
{{- $ports := list }}
{{- range .ports }}{{ $ports = append $ports (int .) }}{{ end }}
{{- $urls := list }}
{{- with .root.Values.proxy.https }}{{ $urls = append $urls . }}{{ end }}
{{- range .root.Values.storageClasses }}
{{- range $key, $value := .parameters }}
{{- if has (lower $key) (list "server" "azurestorageaadendpoint" "msiendpoint") }}{{ $urls = append $urls (toString $value) }}{{ end }}
{{- end }}
{{- end }}
{{- range $urls }}
{{- $authority := regexReplaceAll "^[a-zA-Z]+://" . "" | regexFind "^[^/?#]*" }}
{{- $port := regexFind ":[0-9]+$" $authority | trimPrefix ":" }}
{{- if $port }}{{ $ports = append $ports (int $port) }}
{{- else if hasPrefix "http://" (lower .) }}{{ $ports = append $ports 80 }}
{{- end }}
{{- end }}
{{- uniq $ports | toJson }}
{{- end }}

{{/* Scraping that is asked for and closed at once. */}}
{{- define "vsc-blob.checkScraping" -}}
{{- if and .Values.podMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) }}
{{- fail "networkPolicy.metricsFrom: podMonitor.enabled asks for metrics, and the policy lets nobody fetch them; name the namespace of Prometheus, as [{kubernetes.io/metadata.name: monitoring}]" }}
{{- end }}
{{- end }}

{{/* Namespaces and names of Secrets that a component may read: call with (dict "root" $ "own" .Values.node.secretNamespaces). JSON of
{NAMESPACE: [NAME, ...]}; no name: all of the namespace. An entry of all wins over one with names. */}}
{{- define "vsc-blob.secretNamespaces" -}}
{{- $all := list }}
{{- $found := dict }}
{{- range concat .root.Values.secretNamespaces .own }}
{{- $entry := . }}
{{- if kindIs "string" . }}{{ $entry = dict "namespace" . }}{{ end }}
{{- if not $entry.names }}{{ $all = append $all $entry.namespace }}{{ end }}
{{- $_ := set $found $entry.namespace (concat (get $found $entry.namespace | default list) ($entry.names | default list) | uniq | sortAlpha) }}
{{- end }}
{{- range $all }}{{ $_ := set $found . list }}{{ end }}
{{- toJson $found }}
{{- end }}
