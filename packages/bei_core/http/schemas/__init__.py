"""The bodies of each API: the schema of a request, its conversion to a task, and of a result to a reply."""
