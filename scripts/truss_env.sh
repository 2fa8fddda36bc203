#!/usr/bin/env bash
# The two environments that tests of the Truss need, from locks:
#   .venv-truss         truss itself, for its command line, its validation and its schema
#   .venv-truss-server  what the image of config.yaml holds: Truss's server and the requirements in config.yaml
#
#   scripts/truss_env.sh       makes them; returns at once where they are there and their locks are the same
#   scripts/truss_env.sh lock  resolves the locks again, after a change to requirements/truss.txt or config.yaml
set -euo pipefail
cd "$(dirname "$0")/.."
UV=.venv/bin/uv

die() {
    echo "truss_env.sh: $*" >&2
    exit 1
}

# The first interpreter, of the image's version where there is one, that is no newer than Python 3.$1.
find_python() {
    local candidate
    for candidate in python3.11 .venv/bin/python python3.12 python3.10; do
        if "$candidate" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $1))" 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

make_env() {
    local venv=$1 lock=$2 python=$3 stamp
    stamp="$python $(cksum <"$lock")"
    if [[ -x $venv/bin/python && $(cat "$venv/.stamp" 2>/dev/null) == "$stamp" ]]; then
        return
    fi
    echo "truss_env.sh: making $venv" >&2
    rm -rf "$venv"
    "$UV" venv -q --no-config --python "$python" "$venv"
    "$UV" pip install -q --python "$venv/bin/python" --require-hashes -r "$lock"
    echo "$stamp" >"$venv/.stamp"
}

resolve() {
    "$UV" pip compile -q --universal --python-version 3.10 --generate-hashes --no-header --no-annotate "$@"
}

# What the image installs is what truss writes into its build folder: its own requirements less those that config.yaml
# names itself, then config.yaml's, within its constraints.
lock() {
    resolve --upgrade requirements/truss.txt -o requirements/truss.lock
    make_env .venv-truss requirements/truss.lock "$(find_python 14)"
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    mkdir -p "$build/settings/truss" "$build/truss"
    printf '[preferences]\ncheck_for_updates = false\n' >"$build/settings/truss/settings.toml"
    cp -r config.yaml model "$build/truss"
    XDG_CONFIG_HOME=$build/settings .venv-truss/bin/truss image build-context "$build/context" "$build/truss"
    grep -v '^-i ' "$build/context/requirements.txt" >"$build/requirements.txt" # the index is the machine's to choose
    resolve --upgrade "$build/requirements.txt" -c "$build/context/constraints.txt" -o requirements/truss-server.lock
}

[[ -x $UV ]] || die "there is no $UV; run make install first"
case ${1:-} in
    "")
        make_env .venv-truss requirements/truss.lock "$(find_python 14)"
        python=$(find_python 12) # Truss's server wants numpy<2, which has no wheels for a newer one
        if [[ -n $python ]]; then
            make_env .venv-truss-server requirements/truss-server.lock "$python"
        else
            rm -rf .venv-truss-server && mkdir .venv-truss-server
            echo "no Python 3.10, 3.11 or 3.12 is here" | tee .venv-truss-server/unavailable >&2 # tests look for it
        fi
        ;;
    lock) lock ;;
    *) die "unknown argument $1; see the top of this file" ;;
esac
