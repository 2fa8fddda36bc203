#!/usr/bin/env bash
# Makes the environments of the servers and libraries that benchmarks/peers measures beside ours, from lock files:
#   .venv-peer-infinity, .venv-peer-sentence-transformers, .venv-peer-fastembed
#   .venv-peer-llama-cpp             with llama.cpp's converter to GGUF in its folder llama.cpp
# One whose installation fails contains only a file `unavailable` with the command, and the benchmark goes on without it.
# The first three with torch share its files (5 GB), as uv links them from its cache.
#
#   scripts/peer_envs.sh [NAME...]   makes those that are missing or whose lock file has changed, in the repository or in
#                                    the folder that the variable PEER_ENVS names
#   scripts/peer_envs.sh lock        updates the lock files, after a change to requirements/peers-*.txt
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
UV=.venv/bin/uv
FOLDER=${PEER_ENVS:-.}
PEERS=(fastembed infinity sentence-transformers llama-cpp)
LLAMA_CPP_PYTHON=0.3.36 # its source distribution contains llama.cpp, and so the converter

[[ -x $UV ]] || { echo "peer_envs.sh: $UV is missing; run make install first" >&2; exit 1; }

# The part of llama.cpp that writes GGUF files, in the folder $1.
get_converter() (
    set -e
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    .venv/bin/python -m pip download -q --no-deps --no-binary llama-cpp-python -d "$scratch" "llama-cpp-python==$LLAMA_CPP_PYTHON"
    mkdir -p "$1"
    tar xzf "$scratch"/*.tar.gz -C "$1" --strip-components=3 --wildcards '*/vendor/llama.cpp/conversion' \
        '*/vendor/llama.cpp/gguf-py' '*/vendor/llama.cpp/convert_hf_to_gguf.py'
)

install_env() {
    "$UV" venv -q --no-config --clear --python 3.11 --no-python-downloads "$2" &&
        "$UV" pip install -q --python "$2/bin/python" --no-deps -r "requirements/peers-$1.lock" &&
        { [[ $1 != llama-cpp ]] || get_converter "$2/llama.cpp"; }
}

make_env() {
    local venv=$FOLDER/.venv-peer-$1 stamp
    stamp=$(cksum <"requirements/peers-$1.lock")
    [[ -x $venv/bin/python && $(cat "$venv/.stamp" 2>/dev/null) == "$stamp" ]] && return
    echo "peer_envs.sh: making $venv" >&2
    if install_env "$1" "$venv"; then
        echo "$stamp" >"$venv/.stamp"
    else
        rm -rf "$venv" && mkdir -p "$venv"
        echo "the installation failed; try again: scripts/peer_envs.sh $1" | tee "$venv/unavailable" >&2
    fi
}

lock() {
    local name
    for name in "${PEERS[@]}"; do
        "$UV" pip compile -q --upgrade --python-version 3.11 --override requirements/peers.overrides.txt --no-header \
            --no-annotate "requirements/peers-$name.txt" -o "requirements/peers-$name.lock"
    done
}

if [[ $* == lock ]]; then
    lock
else
    for name in "${@:-${PEERS[@]}}"; do
        make_env "$name"
    done
fi
