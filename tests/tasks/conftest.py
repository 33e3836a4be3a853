"""LAVIS is made importable before any test module here imports it."""

from gitllm_plugin.host.locate import prepare

prepare()
