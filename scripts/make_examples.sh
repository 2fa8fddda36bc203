#!/usr/bin/env bash
# Makes examples/ again, each from a config.yaml for Baseten's BEI. A test compares examples/ with the output.
set -euo pipefail
cd "$(dirname "$0")/.."

init() {
    .venv/bin/bei truss init --force --from "tests/data/baseten/$1.yaml" "${@:3}" "examples/$2"
}

init BEI-Linq-Embed-Mistral BEI-Linq-Embed-Mistral
init BEI-mixedbread-rerank-large-v2-fp8 BEI-mixedbread-rerank-large-v2-fp8
init BEI-Bert-all-MiniLM-L6-v2 all-MiniLM-L6-v2-cpu --cpu
init BEI-Bert-all-MiniLM-L6-v2 docker_server --cpu --docker-server
