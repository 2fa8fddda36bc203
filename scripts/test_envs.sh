#!/usr/bin/env bash
# Makes the environments that tests need in addition to .venv, from lock files:
#   .venv-truss         truss itself, for its command line, its validation and its schema
#   .venv-truss-server  the contents of the image of config.yaml: Truss's server and the requirements in config.yaml
#   .venv-clients       clients that need older packages than those in .venv
#
#   scripts/test_envs.sh                  makes those that are missing or whose lock file has changed
#   scripts/test_envs.sh lock truss       updates the lock files of the first two, after a change to
#                                         requirements/truss.txt or config.yaml
#   scripts/test_envs.sh lock clients     updates the lock file of the last, after a change to requirements/clients.txt
#   scripts/test_envs.sh truss VERSION    makes .venv-truss-VERSION, with another version of truss
set -euo pipefail
cd "$(dirname "$0")/.."
UV=.venv/bin/uv

die() {
    echo "test_envs.sh: $*" >&2
    exit 1
}

# Prints the first interpreter that is no newer than Python 3.$1; the image's version, 3.11, comes first.
find_python() {
    local candidate
    for candidate in python3.11 .venv/bin/python python3.12 python3.10; do
        if "$candidate" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $1))" 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

# Makes .venv-$1 from requirements/$1.lock, with an interpreter that is no newer than Python 3.$2. If there is none, it
# contains only a file `unavailable`, which tests look for.
make_env() {
    local venv=.venv-$1 lock=requirements/$1.lock python stamp
    python=$(find_python "$2")
    if [[ -z $python ]]; then
        rm -rf "$venv" && mkdir "$venv"
        echo "no Python from 3.10 to 3.$2 is installed" | tee "$venv/unavailable" >&2
        return
    fi
    stamp="$python $(cksum <"$lock")"
    if [[ -x $venv/bin/python && $(cat "$venv/.stamp" 2>/dev/null) == "$stamp" ]]; then
        return
    fi
    echo "test_envs.sh: making $venv" >&2
    rm -rf "$venv"
    "$UV" venv -q --no-config --python "$python" "$venv"
    "$UV" pip install -q --python "$venv/bin/python" --require-hashes -r "$lock"
    echo "$stamp" >"$venv/.stamp"
}

make_truss() { make_env truss 14; }
make_truss_server() { make_env truss-server 12; } # Truss's server needs numpy<2, which has no wheels for newer versions
make_clients() { make_env clients 14; }

resolve() {
    "$UV" pip compile -q --upgrade --universal --python-version 3.10 --generate-hashes --no-header --no-annotate "$@"
}

# The image installs the requirements that truss writes into its build folder: truss's own, except those that config.yaml
# names, then those of config.yaml, within truss's constraints.
lock_truss() {
    resolve requirements/truss.txt -o requirements/truss.lock
    make_truss
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    mkdir -p "$build/settings/truss" "$build/truss"
    printf '[preferences]\ncheck_for_updates = false\n' >"$build/settings/truss/settings.toml"
    cp -r config.yaml model "$build/truss"
    XDG_CONFIG_HOME=$build/settings .venv-truss/bin/truss image build-context "$build/context" "$build/truss"
    grep -v '^-i ' "$build/context/requirements.txt" >"$build/requirements.txt" # each machine chooses its own index
    resolve "$build/requirements.txt" -c "$build/context/constraints.txt" -o requirements/truss-server.lock
}

# Another version of truss, without a lock file: with the newest versions of its requirements.
make_other_truss() {
    local venv=.venv-truss-$1
    [[ -x $venv/bin/truss ]] && return
    "$UV" venv -q --no-config --clear --python "$(find_python 14)" "$venv"
    "$UV" pip install -q --python "$venv/bin/python" "truss==$1"
}

lock_clients() { resolve requirements/clients.txt -o requirements/clients.lock; }

[[ -x $UV ]] || die "$UV is missing; run make install first"
case $* in
    "")
        make_truss
        make_truss_server
        make_clients
        ;;
    "lock truss") lock_truss ;;
    "lock clients") lock_clients ;;
    "truss "*) make_other_truss "$2" ;;
    *) die "unknown arguments $*; see the top of this file" ;;
esac
