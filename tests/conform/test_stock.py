"""transformers' own class conforms, and is caught where it is handed something wrong."""

import pytest
import torch

from gitllm_plugin.conform import check
from gitllm_plugin.conform.engines.stock import StockEngine

LINEAR = {"projection": "linear"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_the_class_conforms(models, family, dtype):
    report = check(StockEngine(models.stock(family), dtype), models.reference(family, **LINEAR))
    assert report.conforms, str(report)
    assert [each.status for each in report.findings.values()].count("holds") >= 10
    if dtype == "float32":
        assert max(each.difference or 0 for each in report.findings.values()) < 1e-5


def causal(inputs):
    return {**inputs, "token_type_ids": torch.ones_like(inputs["token_type_ids"])}


def prompt_as_prefix(inputs):
    return {**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])}


def moved(inputs):
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return {**inputs, "position_ids": places + inputs["token_type_ids"]}


def padding_seen(inputs):
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def neighbours_picture(inputs):
    return {**inputs, "pixel_values": inputs["pixel_values"].roll(1, 0)}


FAULTS = {
    causal: "mask: an image sees all of itself",
    prompt_as_prefix: "mask: an image sees no text",
    moved: "positions",
    padding_seen: "padding",
    neighbours_picture: "batch: other pictures",
}


class Faulty(StockEngine):
    """The class as it is called by someone who makes a mistake."""

    def __init__(self, folder, fault, dtype="auto"):
        super().__init__(folder, dtype)
        self.fault, self.last = fault, None

    def inputs(self, texts, asked):
        return self.fault(super().inputs(texts, asked))


class KeepsPicture(Faulty):
    """It is handed the picture of the question before."""

    def inputs(self, texts, asked):
        inputs = super().inputs(texts, asked)
        last, self.last = self.last, inputs["pixel_values"]
        return {**inputs, "pixel_values": last} if last is not None and last.shape == self.last.shape else inputs

    def forget(self):
        self.last = None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_mistake_is_found_by_its_check(models, fault, family, dtype):
    report = check(Faulty(models.stock(family), fault, dtype), models.reference(family, **LINEAR))
    assert FAULTS[fault] in report.differing, str(report)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_picture_that_stays_is_found(models, family):
    engine = KeepsPicture(models.stock(family), lambda inputs: inputs)
    report = check(engine, models.reference(family, **LINEAR))
    assert report.findings["cache: another picture"].status == "differs", str(report)
    assert report.findings["mask: an image sees all of itself"].status == "holds", str(report)
