"""The ``model`` node: what a GIT-LLM is built with, how it is trained and asked."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gitllm_plugin.config.node import ReadIf, Rule, node
from gitllm_plugin.config.values import DefaultIs, Says
from gitllm_plugin.errors import ConfigError

MODULES = ("proj", "lora", "llm", "vit", "all", "head")
"""Modules that can be trained: ``llm`` is the language model without LoRA, ``head`` its output layer alone."""

WAYS_TO_NAME_WEIGHTS = (
    "Evaluate a run by its folder, `gitllm evaluate RUN`; name weights with --options model.load_finetuned=true "
    "model.finetuned=PATH, or an exported model with model.folder=FOLDER; or, to measure chance, "
    "run.allow_untrained=true"
)

Module = Literal["proj", "lora", "llm", "vit", "all", "head"]
ProjectionKind = Literal["linear_norm", "linear", "mlp", "pixel_shuffle", "pool"]
AttentionKind = Literal["git", "causal", "prompt"]
ImagePlaces = Literal["front", "text"]
IMAGE_MARK = "<image>"
"""Where a picture stands in a text, of models of ``image_places: text``."""
MERGING = ("pixel_shuffle", "pool")
"""Projections that make one token of several patches."""
MOST_MERGED = 8
"""Patches in a row that become one token, at most: more would leave nothing of an image."""


def check_modules(trainable: Any) -> Any:
    """Give back what ``trainable`` says.

    Raises:
        ConfigError: a text that names an unknown module; in a list it may be a pattern over parameter names.
    """
    # Patterns stand in lists, and any text may be one: a list is looked at when there is a model.
    for name in trainable.split("+") if isinstance(trainable, str) else ():
        if name not in MODULES:
            raise ConfigError(
                f"unknown module {name!r} in {trainable!r}; modules: {', '.join(MODULES)}, joined by '+'; "
                "patterns over parameter names go into a list"
            )
    return trainable


def _may_train_lora(trainable: str | tuple[str, ...]) -> bool:
    # A pattern may match LoRA's names: of lists nothing can be said before there is a model.
    return not isinstance(trainable, str) or not {"lora", "all"}.isdisjoint(trainable.split("+"))


_WITHOUT_FOLDER = ReadIf(("folder",), lambda folder: not folder, "without a folder, which says it itself")


def is_there(path: str) -> bool:
    """Tell whether a file or folder is there; of a name that no system takes, it is not."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or with NUL, or the home of nobody
        return False


def missing_path(key: str, path: str) -> str | None:
    """Find whether a file or folder is not there, and say so; ``key`` begins with a dot, see :class:`Rule`."""
    if not is_there(path):
        made = f"; `gitllm export RUN {path}` makes one of a training run" if key.endswith(".folder") else ""
        return f"{key} is {path}, which does not exist (looked from {Path.cwd()}){made}"
    return None


@node("model.lora")
class LoraSettings:
    """LoRA's hyper-parameters (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the update."""

    alpha: Annotated[int, Field(ge=1)] = 16
    """The update is scaled by ``alpha / rank``."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout before the update."""

    targets: str | tuple[str, ...] | None = None
    """Names of layers, or one: ``qkv`` (also null: the family's query, key and value projections, fused or not),
    ``all-linear`` (all but the head)."""

    rslora: bool = False
    """Scale by ``alpha / sqrt(rank)`` (Kalajdzievski 2023)."""

    dora: bool = False
    """Learn magnitudes apart from directions (Liu et al. 2024)."""


def _gpu_faults(four_bits: bool, fused: bool, device: str | None, has_gpu: bool) -> Iterable[str]:
    """Find what would be refused when the weights are read; a run's check alone knows the machine."""
    wanted = (
        ("load_in_4bit", four_bits, "bitsandbytes", "use model.dtype=bfloat16 instead"),
        ("fused_kernels", fused, "liger-kernel", "leave it out"),
    )
    for key, _, package, instead in (each for each in wanted if each[1]):
        if device == "cpu":
            yield f".{key} needs a GPU, and run.device is cpu; {instead}"
        elif not has_gpu:
            yield f".{key} needs a CUDA GPU, and torch finds none; {instead}"
        elif find_spec(package.replace("-", "_")) is None:
            yield f".{key} needs {package}, which is not installed: pip install {package}"


def _four_bits_fault(four_bits: bool, sharding: str) -> str | None:
    if four_bits and sharding == "fsdp":
        return ".load_in_4bit and run.sharding=fsdp exclude each other: such weights cannot be spread over ranks"
    return None


def _nothing_trained_fault(trainable: Any, training: bool) -> str | None:
    return ".trainable is an empty list, and nothing would be trained" if training and not trainable else None


@node("model")
class BuildSettings:
    """What a GIT-LLM is built with, besides the names of what it is composed of."""

    trainable: Annotated[
        str | tuple[str, ...],
        AfterValidator(check_modules),
        Says(f"modules ({', '.join(MODULES)}) joined by '+', or a list of those and of patterns over parameter names"),
    ] = "proj+lora"
    """What is trained: ``proj``, ``lora``, ``llm``, ``vit``, ``head`` or ``all``, joined by ``+``, or a list of those
    and of patterns over parameter names."""

    lora: Annotated[LoraSettings | None, ReadIf(("trainable",), _may_train_lora, "where trainable names lora")] = None
    """LoRA on the language model; null for none."""

    max_images: Annotated[int, Field(ge=1), _WITHOUT_FOLDER] = 1
    """Most images (or frames) of one text; above 1 each place has a learned temporal embedding."""

    vision_layer: Annotated[int, Field(le=-1), _WITHOUT_FOLDER] = -1
    """The encoder's hidden layer that is read: -1 the last, -2 LLaVA's."""

    projection: Annotated[ProjectionKind, _WITHOUT_FOLDER] = "linear_norm"
    """``linear_norm``: a linear layer and a LayerNorm, the article's; ``linear``: the layer alone, behind the encoder's
    own final norm where it has one, as in PaliGemma: ``gitllm export --to transformers`` writes such a model as
    transformers' own class; ``mlp``: two layers with a GELU between them, LLaVA-1.5's; ``pixel_shuffle``: a layer over
    neighbouring patches side by side, SmolVLM's; ``pool``: their mean, a layer and a LayerNorm."""

    projection_factor: Annotated[
        int,
        Field(ge=2, le=MOST_MERGED),
        ReadIf(
            ("folder", "projection"),
            lambda folder, projection: not folder and projection in MERGING,
            f"with a projection that merges patches ({', '.join(MERGING)}), without a folder, which says it itself",
        ),
    ] = 2
    """Patches in a row of those that become one token: an image has so many times its square fewer tokens."""

    tile_marks: Annotated[bool, _WITHOUT_FOLDER] = False
    """Learn embeddings of row and column of the tiles that a picture is cut into (``max_tiles`` of its processor)."""

    attention: Annotated[AttentionKind, _WITHOUT_FOLDER] = "git"
    """What the language model's image tokens see: ``git``: their whole image, no text; ``causal``: of their image what
    stands before them, as in LLaVA; ``prompt``: image and prompt, which sees all of both too, as in PaliGemma."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of frozen weights: ``auto`` is bfloat16 where this machine is fast in it, else float32. Trained ones are
    float32."""

    load_in_4bit: bool = False
    """Hold the frozen language model in 4 bits (QLoRA, Dettmers et al. 2023); needs CUDA and bitsandbytes."""

    untie: bool = False
    """Give the head a weight of its own where it shares the input embedding's."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    fused_kernels: bool = False
    """Liger's kernels in the language model: norms, rotary positions, gated layers; needs CUDA and liger-kernel."""

    self_test: bool = True
    """Test a tiny copy of the language model before its weights are read."""

    RULES = (
        Rule(("load_in_4bit", "run.sharding"), _four_bits_fault),
        Rule(("load_in_4bit", "fused_kernels", "run.device", "machine.gpu"), _gpu_faults),
        Rule(("trainable", "run.training"), _nothing_trained_fault),
    )


def _finetuned_fault(load: bool, path: str | None) -> str | None:
    if load and not path:
        return ".load_finetuned is true, but model.finetuned names no checkpoint"
    return missing_path(".finetuned", path) if load and path else None


@node("model")
class ImageTextSettings:
    """What all models of this package read: which weights, and how they are asked."""

    arch: Annotated[str | None, DefaultIs("needed")] = None
    """The model's registered name."""

    model_type: Annotated[str | None, DefaultIs("needed")] = None
    """The file of ``configs/models`` that gives the defaults."""

    load_finetuned: bool = False
    """Load the checkpoint that ``finetuned`` names."""

    finetuned: Annotated[str | None, ReadIf(("load_finetuned",), lambda load: load, "where load_finetuned is true")] = (
        None
    )
    """A run's checkpoint, ``checkpoint_best.pth`` for one."""

    prompt: str = ""
    """Stands before captions of LAVIS's own data sets."""

    rank_by: Literal["sum", "mean"] = "sum"
    """Candidate answers are ranked by the ``sum`` of their tokens' log-probabilities or by the ``mean``."""

    class_names: tuple[str, ...] | None = None
    """What the classes of a classification data set are called, in the order of the labels; null for the data set's own
    names."""

    RULES = (Rule(("load_finetuned", "finetuned"), _finetuned_fault),)


@node("model")
class GitSettings(ImageTextSettings):
    """Plain GIT."""

    weights: Annotated[str, Field(min_length=1), Says("the hub name or folder of a GIT of Microsoft's")]
    """Hub name or folder of a GIT of Microsoft's."""


def _source_fault(language_model: str | None, image_encoder: str | None, folder: str | None) -> Iterable[str]:
    if folder:
        fault = missing_path(".folder", folder)
        if fault:
            yield fault
        return
    for key, given in (("language_model", language_model), ("image_encoder", image_encoder)):
        if not given:
            yield f".{key} is missing; name one, or a model.folder that has both"


def _no_lora_fault(trainable: Any, lora: Any, folder: str | None, training: bool) -> str | None:
    # A folder may have an adapter; patterns stand in lists, and "all" means what there is.
    if training and not folder and lora is None and isinstance(trainable, str) and "lora" in trainable.split("+"):
        return f".trainable is {trainable!r} and model.lora is null: give its rank, or leave lora out of trainable"
    return None


def loss_fault(attention: AttentionKind, loss_on: str) -> str | None:
    """Refuse to train on tokens that the tokens before them see."""
    if attention == "prompt" and loss_on == "all":
        return (
            ".attention is 'prompt' and model.loss_on is 'all': the tokens of a prompt see those behind them, and "
            "would be learnt from themselves; set model.loss_on to 'answer'"
        )
    return None


def _untrained_fault(folder: str | None, loads: bool, training: bool, allowed: bool, own: bool) -> str | None:
    """Refuse what the runner refuses when the model is there, before weights and data are read."""
    if folder or loads or training or allowed or own:
        return None
    return f": UNTRAINED weights would be evaluated, for nothing trained is named. {WAYS_TO_NAME_WEIGHTS}"


@node("model")
class GitLLMSettings(BuildSettings, ImageTextSettings):
    """An image encoder, a projection and a causal language model."""

    language_model: Annotated[str | None, _WITHOUT_FOLDER] = None
    """Hub name or local folder of a causal language model; ``tiny:FAMILY`` for a random small one."""

    image_encoder: Annotated[str | None, _WITHOUT_FOLDER] = None
    """Hub name or local folder of an image encoder; ``tiny:KIND`` for a random small one."""

    folder: str | None = None
    """A folder of ``gitllm export``, in the place of ``language_model`` and ``image_encoder``."""

    lr_scale: dict[Module, Annotated[float, Field(ge=0)]] | None = None
    """Factor on ``run.init_lr`` by module, such as ``{proj: 10}``."""

    weight_decay: dict[Module, Annotated[float, Field(ge=0)]] | None = None
    """In the place of ``run.weight_decay``, by module."""

    chat_template: Annotated[bool | None, DefaultIs("the folder's, or false")] = None
    """Wrap prompts into the language model's conversation template."""

    instruction: str | None = None
    """In the place of ``prompt``: an instruction without a question, put into the folder's prompt template, or the
    article's."""

    image_places: Annotated[ImagePlaces | None, DefaultIs("the folder's, or front")] = None
    """``front``: pictures stand in front of all text, and ``<image>`` in it is text; ``text``: where a prompt says
    ``<image>``, its pictures stand there, in their order; in front where it does not say so."""

    loss_on: Literal["answer", "all"] = "answer"
    """``answer``: answer and end token are trained on; ``all``: every text token, as in the article."""

    RULES = (
        Rule(("language_model", "image_encoder", "folder"), _source_fault),
        Rule(("trainable", "lora", "folder", "run.training"), _no_lora_fault),
        Rule(("attention", "loss_on"), loss_fault),
        Rule(
            ("prompt", "instruction"),
            lambda prompt, instruction: (
                ".prompt and model.instruction are both given; remove one" if prompt and instruction else None
            ),
        ),
        Rule(("folder", "load_finetuned", "run.training", "run.allow_untrained", "run.own_weights"), _untrained_fault),
        Rule(
            ("load_in_4bit", "folder"),
            lambda four_bits, folder: (
                ".load_in_4bit goes with language_model and image_encoder, not with a folder"
                if four_bits and folder
                else None
            ),
        ),
    )
