"""``gitllm demo``: a page to try a model on one's own pictures, on this machine alone."""
