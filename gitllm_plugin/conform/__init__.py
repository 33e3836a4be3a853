"""Whether an engine computes a model as GIT-LLM says: ``gitllm conform``, and for engines of others::

    from gitllm_plugin.conform import check

    report = check(MyEngine(), "my-model")
    print(report)
    assert report.conforms

``MyEngine`` has what :class:`Engine` says.
"""

from gitllm_plugin.conform.asked import Asked
from gitllm_plugin.conform.engine import TOLERANCES, Engine
from gitllm_plugin.conform.reference import Reference
from gitllm_plugin.conform.report import Finding, Report
from gitllm_plugin.conform.run import check

__all__ = ["TOLERANCES", "Asked", "Engine", "Finding", "Reference", "Report", "check"]
