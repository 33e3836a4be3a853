"""The error that ends the demonstration with a message instead of a traceback."""

from gitllm_plugin.errors import GitLLMError


class DemoError(GitLLMError):
    """A step cannot be done; the message says why and what to do."""
