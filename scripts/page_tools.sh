#!/usr/bin/env bash
# Installs the programs that test the pages: Playwright and axe from PyPI into .page-tools, and Chromium from Debian. If
# one cannot be installed, the script names it, and the tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
TOOLS=$PWD/.page-tools

if ! cmp -s requirements/page.lock "$TOOLS/page.lock"; then
    rm -rf "$TOOLS"
    .venv/bin/uv pip install -q --python .venv/bin/python --target "$TOOLS" --no-deps --require-hashes -r requirements/page.lock
    cp requirements/page.lock "$TOOLS"
fi
if [[ ! -x ${BEI_CHROMIUM:-/usr/bin/chromium} ]]; then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null
    else
        echo "page_tools.sh: Chromium takes root and apt-get; install it and say where it is in BEI_CHROMIUM" >&2
        exit 1
    fi
fi
