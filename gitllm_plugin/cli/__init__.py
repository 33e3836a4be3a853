"""The ``gitllm`` command: it parses arguments, calls and prints; what it calls is imported when it is called."""
