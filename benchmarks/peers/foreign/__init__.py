"""Scripts that run in the environments of peers, with nothing of ours."""
