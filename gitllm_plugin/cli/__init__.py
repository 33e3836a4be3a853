"""The `gitllm` command: it parses arguments and calls; it has no logic of its own."""
