"""Settings of a server: flags, environment variables, config.yaml, secrets, and Baseten's `trt_llm` block."""
