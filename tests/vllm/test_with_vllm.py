"""The plug-in in vLLM itself, on a CPU: refused, because its attention there reads pictures causally.

That all else is right is seen with the refusal taken out: then vLLM computes what brute force gives for a picture that
is read causally.
"""

import os

import numpy as np
import pytest
import torch

vllm = pytest.importorskip("vllm", reason="vLLM is not installed; docs/vllm.md says how these tests were run")

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from gitllm_plugin.conform import Reference, readings  # noqa: E402
from gitllm_plugin.errors import ConfigError  # noqa: E402
from gitllm_plugin.modeling import GitLLM, save_folder  # noqa: E402
from gitllm_plugin.modeling.tiny import sharpen, tiny_image_encoder, tiny_tokenizer  # noqa: E402
from gitllm_plugin.vllm.plugin import register  # noqa: E402
from tests.conform.models import SETTINGS  # noqa: E402
from tests.tiny_folder import TRANSFORM  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="what is asked here is true of CPUs"),
]
# vLLM's kernels for CPUs take heads of 32 channels and more.
SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}


def write(folder, kind):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **SIZES)
    model = GitLLM(tiny_image_encoder("clip"), sharpen(AutoModelForCausalLM.from_config(config).eval())).eval()
    preprocessor = TRANSFORM.as_preprocessor_config()
    save_folder(model, folder, tokenizer=tokenizer, image_processor=preprocessor, settings=SETTINGS)
    return folder


def opened(folder):
    register()
    return vllm.LLM(
        model=str(folder),
        tokenizer=str(folder / "language_model"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=4,
        max_logprobs=-1,
    )


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        # vLLM starts Python anew to look at a class.
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }.items():
        monkeypatch.setenv(name, value)


def test_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="CPU_ATTN reads a picture causally"):
        opened(write(tmp_path / "model", "llama"))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_all_but_the_prefix_is_right(kind, tmp_path, monkeypatch):
    import gitllm_plugin.vllm.model as of_vllm

    monkeypatch.setattr(of_vllm, "check_attention", lambda backends: None)
    folder = write(tmp_path / "model", kind)
    model, reference = opened(folder), Reference(folder)
    settings = vllm.SamplingParams(temperature=0, max_tokens=4, logprobs=-1, ignore_eos=True)
    for number, question in enumerate(("what color is it?", "is there a circle?")):
        asked = reference.asking.ask(reference.asking.pictures(number), question)
        prompt = {"prompt_token_ids": list(asked.ids), "multi_modal_data": {"image": asked.pictures[0]}}
        (found,) = model.generate([prompt], settings, use_tqdm=False)[0].outputs
        asked = asked.followed_by(tuple(found.token_ids[:-1]))
        causal = torch.from_numpy(reference.logits(asked, readings.image_causal)).log_softmax(1).numpy()
        right = torch.from_numpy(reference.logits(asked)).log_softmax(1).numpy()
        given = np.array([[step[token].logprob for token in range(right.shape[1])] for step in found.logprobs])
        assert np.abs(given - causal).max() < 1e-4
        assert np.abs(given - right).max() > 1e-2
