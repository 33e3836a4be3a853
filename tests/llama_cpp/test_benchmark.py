"""What the benchmark compares computes the same model."""

# ruff: noqa: E402

import base64
import io

import pytest
from PIL import Image

for package in ("gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp"):
    pytest.importorskip(package, reason="pip install 'gitllm-plugin[llama-cpp]'")

from benchmarks import llama_cpp
from benchmarks.transformers_class import TransformersClass
from gitllm_plugin.inference.asking import Decoding
from gitllm_plugin.llama_cpp.engine import Engine


def rows():
    for color in ("red", "teal", "gray"):
        Image.new("RGB", (40, 30), color).save(file := io.BytesIO(), "png")
        encoded = base64.b64encode(file.getvalue()).decode()
        for question in ("what color is it?", "", "is there a circle?"):
            yield {"image_base64_str": [encoded], "instruction": "", "inputs": question, "outputs": "red"}


def test_all_ways_give_the_same_answers(exported):
    pipeline, folder = exported
    asked = list(rows())
    engines = {
        llama_cpp.TORCH: pipeline,
        llama_cpp.TRANSFORMERS: TransformersClass(pipeline),
        "llama.cpp, f32": Engine(folder, threads=1),
    }
    found = llama_cpp.measure(engines, asked, Decoding(max_new_tokens=5))
    assert {name: way["equal"] for name, way in found["ways"].items()} == dict.fromkeys(engines, len(asked))
    page = llama_cpp.page({"where": {"cpu": "one"}, "rows": len(asked), **found})
    assert all(name in page for name in engines)
