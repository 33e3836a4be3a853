"""These tests import LAVIS, so it is made importable before they are collected."""

from gitllm_plugin.host.locate import prepare

prepare()
