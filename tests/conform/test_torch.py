"""This package's own engine conforms, and planted faults are found by the check that is named for them."""

import pytest

from gitllm_plugin.conform import check
from gitllm_plugin.conform.checks import CHECKS
from gitllm_plugin.conform.engines.torch import TorchEngine
from gitllm_plugin.modeling.families import FAMILIES
from tests.conform.faults import FAULTS, beams_not_reordered, caches_of_others, one_prefix, text_moved

COMMON = ("llama", "opt", "mpt", "gemma2")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(FAMILIES) - set(COMMON))]
DTYPES = ("float32", "bfloat16")


def statuses(report):
    return {name: finding.status for name, finding in report.findings.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [*COMMON, *SLOW])
def test_a_model_conforms(models, family, dtype):
    report = check(TorchEngine(models.pipeline(family, dtype)), models.reference(family))
    assert report.conforms, str(report)
    told = [name for name, status in statuses(report).items() if status == "holds"]
    assert len(told) >= 10, str(report)
    largest = max(finding.difference or 0 for finding in report.findings.values())
    assert largest < (1e-5 if dtype == "float32" else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_model_of_several_images_conforms(models, family, dtype):
    report = check(TorchEngine(models.pipeline(family, dtype, max_images=3)), models.reference(family, max_images=3))
    assert "cannot be asked" not in statuses(report).values()
    assert report.conforms, str(report)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "opt", "mpt"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_by_its_check(models, monkeypatch, fault, family, dtype):
    if family == "mpt" and fault in (text_moved, caches_of_others):
        pytest.skip("its positions are slots, so that it shares no rows and is given no positions")
    if fault is beams_not_reordered and dtype == "bfloat16":
        pytest.skip("in these models it changes less than rounding does")
    reference, engine = models.reference(family), TorchEngine(models.pipeline(family, dtype))
    # Training's way without masks has the rule in another place.
    engine.every = None
    fault(monkeypatch)
    report = check(engine, reference)
    assert FAULTS[fault] in report.differing, str(report)
    # What has nothing to do with the fault is not blamed.
    of_masks = {name for name in CHECKS if name.startswith(("mask", "positions"))}
    may = {FAULTS[fault]} | ({"mask: text sees no later text"} if fault is one_prefix else set())
    assert not set(report.differing) & of_masks - may, str(report)
