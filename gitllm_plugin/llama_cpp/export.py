"""A model as a folder that llama.cpp and onnxruntime answer from: ``gitllm export --to llama.cpp``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gitllm_plugin.common.files import check_new_folder, new_folder
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.llama_cpp.folder import ENCODER, WEIGHTS, check_packages, write_description
from gitllm_plugin.m3it.prompts import build_prompt
from gitllm_plugin.modeling import Decoder, GitLLM, TextEncoder
from gitllm_plugin.modeling.conversation import Conversation
from gitllm_plugin.modeling.families import Family
from gitllm_plugin.modeling.folder import has_lora
from gitllm_plugin.modeling.lora import merge_lora
from gitllm_plugin.modeling.plain_text import PlainText
from gitllm_plugin.modeling.tiny import sharpen, tiny_copy

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel

    from gitllm_plugin.inference.pipeline import Pipeline

QUANTIZE = ("q8_0", "q4_k_m")
_MOST_CONTEXT = 2048
_EXACT = 1e-4
_PROMPT = "{prompt}"


@torch.no_grad()
def write_llama_folder(pipeline: Pipeline, target: str | Path, quantize: str | None = None) -> None:
    """Write a model for llama.cpp, and compare what it computes there.

    Args:
        pipeline: of a model on the CPU; it is cast to float32, and its LoRA is added to the weights.
        target: the folder to make.
        quantize: a name of :data:`QUANTIZE`; None: weights in float32.

    Raises:
        ConfigError: the target is in use, the model reads otherwise than GIT, or llama.cpp does not compute this
            model, or its tokenizer's ids.
    """
    check_packages()
    check_new_folder(target)
    from gitllm_plugin.llama_cpp.weights import check_known, context_of

    model, encoder = pipeline.model.cpu().float(), pipeline.text_encoder
    config: Any = model.language_model.config
    check_known(config)
    check_family(config, model.decoder.family)
    if model.decoder.attention != "git":
        raise ConfigError(
            f"this model was trained with model.attention={model.decoder.attention}; for llama.cpp only models of "
            "model.attention=git are written"
        )
    if encoder.image_places != "front":
        raise ConfigError(
            "this model's texts say where their pictures stand (model.image_places=text); for llama.cpp only models of "
            "model.image_places=front are written"
        )
    if pipeline.transform.max_tiles > 1:
        raise ConfigError(
            f"this model reads pictures in tiles (max_tiles={pipeline.transform.max_tiles}); for llama.cpp only models "
            "of whole pictures are written"
        )
    if has_lora(model):
        merge_lora(model.language_model)
    side = pipeline.transform.image_size
    with new_folder(Path(target)) as folder:
        write_encoder(model, side, folder / ENCODER)
        about = {
            "model": {name: value for name, value in pipeline.describe().items() if name != "runs_on"},
            "weights": quantize or "f32",
            "max_images": model.max_images,
            "image_tokens": model.num_image_tokens(side, side),
            "context": context_of(config, _MOST_CONTEXT),
            "ends": encoder.ends,
            "image": _image_settings(pipeline),
            "prompt": {
                "template": pipeline.template,
                "instruction": pipeline.instruction,
                **describe_prompts(encoder),
            },
        }
        write_tokens = choose_tokenizer(model.language_model, encoder, about["prompt"])
        write_gguf(model.language_model, folder / WEIGHTS, write_tokens, quantize)
        write_description(folder, about)


@torch.no_grad()
def check_family(config: Any, family: Family) -> None:
    """Compare a tiny model of the same settings in llama.cpp with our own.

    Raises:
        ConfigError: logits differ by more than 1e-4.
    """
    from gitllm_plugin.llama_cpp.decoder import LlamaCpp

    tiny = sharpen(tiny_copy(config, family)).float()
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, 9, tiny.config.hidden_size, generator=random)
    ids = torch.randint(3, 128, (1, 40), generator=random)
    ours = Decoder(tiny, family).forward(vectors, torch.ones(1, 9, dtype=torch.bool), ids).logits
    assert ours is not None
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(tiny, Path(folder) / WEIGHTS, lambda writer, size: writer.add_tokenizer_model("none"))
        theirs = LlamaCpp(Path(folder) / WEIGHTS, 64)
        theirs.see(vectors[0].numpy())
        difference = float(np.abs(theirs.read(ids[0].tolist(), every=True) - ours[0].numpy()).max())
    if not difference <= _EXACT:
        raise ConfigError(
            f"llama.cpp computes {config.model_type} otherwise: logits of a tiny model differ by {difference:.1e}"
        )


def write_gguf(
    model: PreTrainedModel, path: Path, write_tokens: Callable[[GGUFWriter, int], None], quantize: str | None = None
) -> None:
    """Write a language model's settings, tokenizer and weights."""
    import gguf

    from gitllm_plugin.llama_cpp.quantizing import Quantizer
    from gitllm_plugin.llama_cpp.weights import read_weights

    quantizer = Quantizer(model.config, quantize)
    with _writer(model, path, write_tokens) as writer:
        writer.add_file_type(quantizer.file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, weight in read_weights(model):
            data, kind = quantizer.store(name, weight)
            writer.add_tensor(name, data, raw_dtype=kind)


@contextmanager
def _writer(
    model: PreTrainedModel, path: Path, write_tokens: Callable[[GGUFWriter, int], None]
) -> Iterator[GGUFWriter]:
    import gguf

    from gitllm_plugin.llama_cpp.weights import ARCHITECTURES, write_settings

    config: Any = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    write_settings(writer, model)
    write_tokens(writer, config.vocab_size)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe_prompts(encoder: TextEncoder) -> dict[str, Any]:
    """Say what stands around a prompt: strings and ids of special tokens, ``{prompt}`` in one of the strings.

    Raises:
        ConfigError: the conversation template does more with a question than to write it.
    """
    from gitllm_plugin.llama_cpp.tokens import normalizer_of

    plain = PlainText(encoder.tokenizer, encoder.ends)
    begin, bos = plain.around[0], encoder.tokenizer.bos_token_id
    turn: list[str | int] = [_PROMPT]
    if encoder.chat_template is not None:
        turn = list(Conversation(encoder.tokenizer, encoder.chat_template, plain.special).ask(_PROMPT))
        if not any(isinstance(piece, str) and _PROMPT in piece for piece in turn):
            raise ConfigError("the conversation template does not write the question as it is")
        if isinstance(last := turn[-1], str):
            # White space that is no line break goes with the answer.
            kept = last.rstrip()
            blank = last[len(kept) :]
            turn[-1] = kept + blank[: max(blank.rfind("\n"), blank.rfind("\r")) + 1]
    if turn[: len(begin)] != begin:
        turn = [*begin, *turn]
    start = encoder.ends[0] if bos is None else bos
    return {"turn": turn, "start": start, "normalizer": normalizer_of(encoder.tokenizer)}


def choose_tokenizer(
    model: PreTrainedModel, encoder: TextEncoder, prompt: dict[str, Any]
) -> Callable[[GGUFWriter, int], None]:
    """Find the way in which llama.cpp makes the ids of training.

    Raises:
        ConfigError: there is none; an example is told.
    """
    from gitllm_plugin.llama_cpp.decoder import LlamaCpp
    from gitllm_plugin.llama_cpp.engine import turn_ids
    from gitllm_plugin.llama_cpp.tokens import SAMPLES, candidates

    texts = [*SAMPLES, build_prompt(prompt["template"], prompt["instruction"], "what is it?")]
    # As the pipeline makes them of questions, whose outer white space is taken away.
    texts = [text.strip() for text in texts]
    batch = encoder.prompts(texts)
    wanted = [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    least, example = len(texts) + 1, ""
    with tempfile.TemporaryDirectory() as folder:
        for number, (_, write_tokens) in enumerate(candidates(encoder.tokenizer)):
            path = Path(folder) / f"{number}.gguf"
            with _writer(model, path, write_tokens):
                pass
            try:
                tokenizer = LlamaCpp(path, 0)
            except ConfigError:
                continue  # a way that this llama.cpp does not know
            wrong = [t for t, ids in zip(texts, wanted, strict=True) if turn_ids(prompt, t, tokenizer.ids) != ids]
            if not wrong:
                return write_tokens
            if len(wrong) < least:
                least, example = len(wrong), wrong[0]
    raise ConfigError(f"llama.cpp cuts texts into other tokens than this model's tokenizer, such as {example!r}")


class _Vectors(nn.Module):
    """Pixels to image vectors, one image at a time."""

    def __init__(self, model: GitLLM, side: int) -> None:
        super().__init__()
        self.encoder, self.projection, self.places = model.image_encoder, model.projection, model.temporal_embedding
        self.grid = model.image_encoder.grid_shape(side, side)

    def forward(self, pixels: Tensor, place: Tensor | None = None) -> Tensor:
        features = self.encoder(pixels)[0]
        if place is not None and self.places is not None:
            features = features + self.places[place][0]
        return self.projection(features, self.grid)


def write_encoder(model: GitLLM, side: int, path: Path) -> None:
    """Write image encoder and projection for images of one size, and compare them.

    Raises:
        ConfigError: torch cannot export the encoder, or onnxruntime computes something else.
    """
    import onnxruntime

    vectors = _Vectors(model, side).eval()
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    given = {"pixels": pixels, **({"place": torch.tensor([0])} if model.max_images > 1 else {})}
    try:
        names: dict[str, Any] = {"input_names": list(given), "output_names": ["vectors"]}
        torch.onnx.export(vectors, tuple(given.values()), path, **names, external_data=False, verbose=False)
    except Exception as error:  # of many kinds, by what an encoder is made of
        raise ConfigError(f"torch cannot export this image encoder as ONNX: {str(error)[:300]}") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = np.asarray(session.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0])
    difference = float(np.abs(theirs - vectors(*given.values()).numpy()).max())
    if not difference <= _EXACT:
        raise ConfigError(f"onnxruntime computes other image vectors, by {difference:.1e}")


def _image_settings(pipeline: Pipeline) -> dict[str, Any]:
    transform = pipeline.transform
    squash = transform.resize == "squash"
    return {
        "image_size": transform.image_size,
        "shortest_edge": None if squash else transform.shortest_edge or transform.image_size,
        "resampling": transform.resampling,
        "round_centre": transform.round_centre,
        "mean": list(transform.mean),
        "std": list(transform.std),
    }
