"""Settings of a server, from flags, environment variables, config.yaml, secrets, and Baseten's `trt_llm` block."""
