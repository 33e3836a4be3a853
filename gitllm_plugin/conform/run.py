"""All checks of an engine, one after another."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from gitllm_plugin.conform.checks import CHECKS, Check
from gitllm_plugin.conform.reference import Reference
from gitllm_plugin.conform.report import Finding, Report
from gitllm_plugin.conform.subject import EngineFailure, Subject
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.inference.pipeline import Pipeline


def check(
    engine: Any,
    reference: str | Path | Pipeline | Reference,
    *,
    tolerance: float | None = None,
    only: Collection[str] | None = None,
    tell: Callable[[str, Finding], object] | None = None,
) -> Report:
    """Compare an engine with the model that it should compute.

    Args:
        engine: what :class:`~gitllm_plugin.conform.engine.Engine` says.
        reference: a folder of ``gitllm export``; or what is open of it, on the CPU and in float32.
        tolerance: what logits may differ, as a share of the largest; None: by the engine's precision.
        only: names of checks; None: all.
        tell: is told each finding as soon as there is one.

    Raises:
        ConfigError: it is no engine, the folder is none, the model has no reference, or a check has no such name.
    """
    names = list(CHECKS) if only is None else list(only)
    if unknown := [name for name in names if name not in CHECKS]:
        raise ConfigError(f"no check {unknown[0]!r}; there are: {', '.join(CHECKS)}")
    reference = reference if isinstance(reference, Reference) else Reference(reference)
    subject = Subject(engine, reference, tolerance)
    findings = {}
    for name in names:
        findings[name] = _run(CHECKS[name], subject)
        if tell is not None:
            tell(name, findings[name])
    kind = "logits" if subject.gives_logits else "texts"
    questions = len(subject.questions)
    return Report(engine.name, engine.precision, kind, subject.tolerance, questions, findings)


def _run(each: Check, subject: Subject) -> Finding:
    try:
        return each.run(subject)
    except EngineFailure as error:
        return Finding("differs", said=f"it failed: {' '.join(str(error).split())[:300]}")
