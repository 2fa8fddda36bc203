"""`python -m bei_core.cli` runs the `bei` command."""

from bei_core.cli.main import main

main()
