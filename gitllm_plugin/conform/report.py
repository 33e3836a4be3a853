"""What was found: a finding for each check, and all of them as a table or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gitllm_plugin.tables import Block, Table, as_text

Status = Literal["holds", "differs", "cannot be told", "cannot be asked"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        status: ``cannot be told``: what the check looks for would change too little in this model to be seen, or
            another fault hides it; ``cannot be asked``: the engine or the model has not what is asked for.
        difference: of logits the largest, as a share of the largest logit; of texts the share of those that differ;
            None where nothing was compared.
        said: in words, what else there is to say.
    """

    status: Status
    difference: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Report:
    """All findings about an engine.

    Attributes:
        engine: its name.
        precision: of the engine.
        compared: "logits" or "texts".
        tolerance: what was allowed, as :attr:`Finding.difference` counts.
        questions: how many questions were asked one by one.
        findings: by the checks' names.
    """

    engine: str
    precision: str
    compared: Literal["logits", "texts"]
    tolerance: float
    questions: int
    findings: Mapping[str, Finding]

    @property
    def conforms(self) -> bool:
        """Whether nothing differs."""
        return not self.differing

    @property
    def differing(self) -> list[str]:
        """Names of the checks that found something else than what is right."""
        return [name for name, finding in self.findings.items() if finding.status == "differs"]

    def __str__(self) -> str:
        return as_text(self.blocks())

    def blocks(self) -> list[Block]:
        """Give the report as a line and a table."""
        rows = [
            (name, each.status, "" if each.difference is None else self._number(each.difference), each.said)
            for name, each in self.findings.items()
        ]
        allowed = "of equal texts" if self.compared == "texts" else f"up to {self.tolerance:.0e} of the largest logit"
        head = f"{self.engine}, {self.precision}: {self.compared} {allowed}"
        return [head, Table(("check", "", "difference", ""), rows, numbers={2}), self.verdict()]

    def verdict(self) -> str:
        """Say in a line how it ended."""
        counts: dict[str, int] = {}
        for each in self.findings.values():
            counts[each.status] = counts.get(each.status, 0) + 1
        return ", ".join(f"{number} {self._plural(status, number)}" for status, number in counts.items())

    def as_json(self) -> dict[str, Any]:
        """Give the report as plain values."""
        return {**asdict(self), "findings": {k: asdict(v) for k, v in self.findings.items()}, "conforms": self.conforms}

    def _number(self, difference: float) -> str:
        return f"{difference:.0%}" if self.compared == "texts" else f"{difference:.0e}"

    def _plural(self, status: str, number: int) -> str:
        return {"holds": "hold", "differs": "differ"}.get(status, status) if number > 1 else status
