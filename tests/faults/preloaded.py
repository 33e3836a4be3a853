"""Imports all that commands import, once for all of them."""

import gitllm_plugin

gitllm_plugin.register()

import matplotlib.figure  # noqa: E402, F401
import pandas  # noqa: E402, F401
import pyarrow  # noqa: E402, F401
from lavis.common.config import Config  # noqa: E402, F401

from gitllm_plugin.cli import main  # noqa: E402, F401
from gitllm_plugin.curves import draw  # noqa: E402, F401
from gitllm_plugin.experiments import run as _experiments  # noqa: E402, F401
from gitllm_plugin.host import config_check, export, launch, open_model  # noqa: E402, F401
from gitllm_plugin.inference import pipeline  # noqa: E402, F401
from gitllm_plugin.m3it import check, from_table  # noqa: E402, F401
from gitllm_plugin.m3it.shards import make  # noqa: E402, F401
from gitllm_plugin.modeling import build, published  # noqa: E402, F401
from gitllm_plugin.words import run as _words  # noqa: E402, F401
