"""The `bei` command, one file a subcommand."""
