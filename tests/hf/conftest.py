"""Before transformers' classes are imported, as a user does."""

import gitllm_plugin

assert gitllm_plugin
