"""llama.cpp conforms, and is caught where it is called wrongly."""

# ruff: noqa: E402

import pytest

for package in ("gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp"):
    pytest.importorskip(package, reason="pip install 'gitllm-plugin[llama-cpp]'")

from gitllm_plugin.conform import check
from gitllm_plugin.conform.engines.llama_cpp import LlamaCppEngine
from gitllm_plugin.llama_cpp.engine import Engine


@pytest.fixture
def engine(models):
    return LlamaCppEngine(models.gguf("llama"), threads=1)


def test_it_conforms(models, engine):
    report = check(engine, models.reference("llama"))
    assert report.conforms, str(report)
    assert max(each.difference or 0 for each in report.findings.values()) < 1e-5
    assert report.findings["padding"].status == "cannot be asked"


class Ignoring:
    """The library, which is told about causality and does not hear a certain word."""

    def __init__(self, library, ignored):
        self.library, self.ignored = library, ignored

    def __getattr__(self, name):
        return getattr(self.library, name)

    def llama_set_causal_attn(self, context, causal):
        if causal != self.ignored:
            self.library.llama_set_causal_attn(context, causal)


def image_causal(patch, engine):
    decoder = engine.engine.decoder
    patch.setattr(decoder, "_lib", Ignoring(decoder._lib, False))


def text_bidirectional(patch, engine):
    decoder = engine.engine.decoder
    patch.setattr(decoder, "_lib", Ignoring(decoder._lib, True))


def picture_kept(patch, engine):
    """Whatever picture comes, the one that is there is taken."""
    right = Engine.see

    def see(self, pixels):
        right(self, self._seen if self._seen.size else pixels)

    patch.setattr(Engine, "see", see)


def text_kept(patch, engine):
    """The question before is taken for the same, as far as it is long."""
    decoder = engine.engine.decoder

    def read_whole(ids):
        same = min(len(decoder._text), len(ids) - 1)
        decoder._keep_text(same)
        return decoder.read(ids[same:])[0]

    patch.setattr(decoder, "read_whole", read_whole)


FAULTS = {
    image_causal: "mask: an image sees all of itself",
    text_bidirectional: "mask: text sees no later text",
    picture_kept: "cache: another picture",
    text_kept: "cache: a second question about a picture",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_mistake_is_found_by_its_check(models, engine, monkeypatch, fault):
    # Whole texts are read right away behind the picture, of which some of these mistakes know nothing.
    engine.every = None
    fault(monkeypatch, engine)
    report = check(engine, models.reference("llama"))
    assert FAULTS[fault] in report.differing, str(report)
    of_masks = [name for name in report.differing if name.startswith(("mask", "positions"))]
    assert set(of_masks) <= {FAULTS[fault]}, str(report)


def test_fewer_bits_conform_within_theirs(models):
    report = check(LlamaCppEngine(models.gguf("llama", "q8_0"), threads=1), models.reference("llama"))
    assert report.precision == "q8_0"
    assert report.conforms, str(report)
    assert 1e-4 < report.findings["positions"].difference < 5e-2
