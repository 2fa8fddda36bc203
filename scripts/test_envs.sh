#!/usr/bin/env bash
# Makes the environments that tests need in addition to .venv, from lock files:
#   .venv-truss            truss itself, for its command line, its validation and its schema
#   .venv-truss-server     the contents of the image of config.yaml: Truss's server and the requirements in config.yaml
#   .venv-clients          clients that need older packages than those in .venv
#   .venv-clients-vendors  clients of other vendors' APIs, without large packages that they ask for and do not need here
#   tests/e2e/node         clients for Node, in node_modules; needs npm
#
#   scripts/test_envs.sh                  makes those that are missing or whose lock file has changed
#   scripts/test_envs.sh lock truss       updates the lock files of the first two, after a change to
#                                         requirements/truss.txt or config.yaml
#   scripts/test_envs.sh lock clients     updates the lock files of the clients for Python, after a change to
#                                         requirements/clients.txt or requirements/clients-vendors*.txt
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

# Makes .venv-$1 from requirements/$1.lock, with an interpreter that is no newer than Python 3.$2 and more options for uv
# after it. If there is no such interpreter, it contains only a file `unavailable`, which tests look for.
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
    "$UV" pip install -q --python "$venv/bin/python" --require-hashes -r "$lock" "${@:3}"
    echo "$stamp" >"$venv/.stamp"
}

make_truss() { make_env truss 14; }
make_truss_server() { make_env truss-server 12; } # Truss's server needs numpy<2, which has no wheels for newer versions
make_clients() {
    make_env clients 14
    make_env clients-vendors 14 --no-deps # the lock file leaves out what the overrides name
}

# The packages of tests/e2e/node, exactly those of its lock file; without npm a file `unavailable`, which tests look for.
make_node() {
    local folder=tests/e2e/node modules=tests/e2e/node/node_modules stamp
    if ! command -v npm >/dev/null; then
        rm -rf "$modules" && mkdir "$modules"
        echo "there is no npm" | tee "$modules/unavailable" >&2
        return
    fi
    stamp="$(node --version) $(cksum <"$folder/package-lock.json")"
    [[ $(cat "$modules/.stamp" 2>/dev/null) == "$stamp" ]] && return
    echo "test_envs.sh: making $modules" >&2
    npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel error
    echo "$stamp" >"$modules/.stamp"
}

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

lock_clients() {
    resolve requirements/clients.txt -o requirements/clients.lock
    resolve --override requirements/clients-vendors.overrides.txt requirements/clients-vendors.txt \
        -o requirements/clients-vendors.lock
}

[[ -x $UV ]] || die "$UV is missing; run make install first"
case $* in
    "")
        make_truss
        make_truss_server
        make_clients
        make_node
        ;;
    "lock truss") lock_truss ;;
    "lock clients") lock_clients ;;
    "truss "*) make_other_truss "$2" ;;
    *) die "unknown arguments $*; see the top of this file" ;;
esac
