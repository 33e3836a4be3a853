"""What is pretrained, by hub name or folder: loaded whole, or refused with the file and the weights that are at fault.

transformers fills the weights that a checkpoint lacks with random numbers and passes over those that it does not know,
with a line in the log. Here all are accounted for:

- *missing* is lawful what is tied to a weight that is there, what is computed (rotary frequencies, positions), and
  what nobody reads (an image encoder's pooler and final norm), which becomes 0;
- *unexpected* is lawful what belongs to another part than the one that is read: the text tower of CLIP, a classifier,
  a value head. A weight below a part that the model has is none of that: a layer more than the configuration says, or
  a bias that it leaves out, is another model;
- a weight of *another shape* is never lawful.

Nothing that a model's folder brings along is run: configurations that ask for code of their own are refused.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from gitllm_plugin.common.device import default_device, has_fast_bf16
from gitllm_plugin.common.file_faults import check_file, fault_of_file, read_json
from gitllm_plugin.errors import ConfigError, GitLLMError, first_line
from gitllm_plugin.modeling.sizes import check_model, check_numbers, count_tensors
from gitllm_plugin.modeling.weightless import make_by_config, weights_left_out

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.json",
    "chat_template.jinja",
)
"""What a tokenizer is kept in, one or several of them."""
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers looks for weights, in its order."""
_ADAPTER = "adapter_config.json"
_SHOWN = 5

#: Buffers that some releases of transformers, timm or fairseq saved: computed today, or a version's number.
_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|position_ids|relative_position_index|attn_mask|num_batches_tracked|version"
    r"|(attn|attention)\.(masked_)?bias)$"
)


def never(name: str) -> bool:
    """Say of every weight that it is read."""
    return False


def resolve_dtype(name: str) -> torch.dtype:
    """Find the dtype that a name means: of :data:`DTYPES`, or ``auto``, bfloat16 where this machine is fast in it.

    Raises:
        ConfigError: no such dtype.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(default_device()) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def load_config(name: str, what: str) -> PreTrainedConfig:
    """Read what kind of model a name or folder has.

    Args:
        name: hub name or local folder.
        what: kind of thing, for the message (``language model``).

    Raises:
        ConfigError: ``name`` is neither a folder nor a model that can be fetched; or its ``config.json`` is damaged,
            is of a kind that transformers does not have, or asks for code of its own.
    """
    _check_files(name, _CONFIG_FILES)
    if (path := Path(name) / _CONFIG_FILES[0]).is_file():
        files = [file for file in weight_files(path.parent) if fault_of_file(file) is None]
        check_numbers(read_json(path), path, count_tensors(files) or None)
    with _told(name, what, _CONFIG_FILES):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def load_tokenizer(name: str, what: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a name or folder; see :func:`load_config` for the arguments.

    Raises:
        ConfigError: there is none, a file of it is damaged, or it asks for code of its own.
    """
    _check_files(name, TOKENIZER_FILES)
    if (Path(name) / "tokenizer.json").exists() and not (Path(name) / "tokenizer_config.json").exists():
        raise ConfigError(
            f"{what} {name!r} has a tokenizer.json and no tokenizer_config.json, which says with which tokens texts "
            "begin and end: transformers would guess them. Fetch it too"
        )
    with _told(name, what, TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    # In a folder without a tokenizer, transformers makes one that knows no word, and says nothing.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ConfigError(
            f"{what} {name!r} has no tokenizer, or one without words: save the one that it was trained with in the "
            "same folder"
        )
    return tokenizer


def load_model(
    name: str,
    what: str,
    model_class: Any,
    is_unread: Callable[[str], bool] = never,
    **kwargs: Any,
) -> Any:
    """Load a model with all its weights, and none that are another model's.

    Args:
        name: hub name or local folder.
        what: kind of thing, for the message.
        model_class: of transformers.
        is_unread: tells of a weight's name whether nobody reads it, so that it may be missing.
        **kwargs: go to ``from_pretrained``.

    Raises:
        ConfigError: the name cannot be loaded, a file of it is damaged, or weights are missing, of another shape or of
            another model; the message names files and weights.
    """
    if weights_left_out():
        return make_by_config(model_class, kwargs.get("config") or load_config(name, what), kwargs.get("dtype"))
    _check_weights(name, what)
    with _told(name, what, _WEIGHTS):
        if os.path.isdir(name):
            config = kwargs.get("config") or load_config(name, what)
            make = getattr(model_class, "from_config", model_class)  # of transformers' Auto classes
            size = sum(file.stat().st_size for file in weight_files(Path(name)))
            check_model(lambda: make(copy.deepcopy(config)), size, f"{what} {name!r}")
        # Weights of another shape are listed in this way alone; they are refused all the same.
        model, report = model_class.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _is_adapter(name, what)
    account(model, report, f"{what} {name!r}", is_unread)
    return model


def account(
    model: PreTrainedModel,
    report: dict[str, Any],
    source: str,
    is_unread: Callable[[str], bool] = never,
    other_parts: bool = True,
) -> None:
    """Refuse a model whose weights are not exactly its checkpoint's, by transformers' report about loading them.

    What nobody reads and is missing becomes 0, in place: random numbers would differ from process to process.

    Args:
        model: as it was loaded.
        report: the other thing that ``from_pretrained(output_loading_info=True)`` gives.
        source: what was loaded, for the message.
        is_unread: see :func:`load_model`.
        other_parts: whether the checkpoint may hold parts that the model does not have.

    Raises:
        ConfigError: the message lists the weights.
    """
    missing = {name for name in report["missing_keys"] if not _COMPUTED.search(name)}
    state = model.state_dict()
    for name in (unread := {name for name in missing if is_unread(name)}):
        state[name].zero_()
    reshaped = {name: (given, wanted) for name, given, wanted in report["mismatched_keys"]}
    faults = [f"missing: {_name_in_file(model, name)}" for name in sorted(missing - unread)]
    faults += [
        f"not in the model: {_name_in_file(model, name)}"
        for name in sorted(report["unexpected_keys"])
        if not is_unread(name) and (_is_of(model, name) or not other_parts)
    ]
    faults += [
        f"shape of {_name_in_file(model, name)}: {list(given)} in the checkpoint, {list(wanted)} by its configuration"
        for name, (given, wanted) in sorted(reshaped.items())
    ]
    faults += [str(message) for message in report.get("error_msgs") or ()]
    if faults:
        shown = listed(faults, "\n  ")
        raise ConfigError(
            f"{source} has other weights than its configuration says ({len(faults)} differences). transformers would "
            f"put random numbers into the gaps; fetch or save it again, whole.\n  {shown}"
        )


def listed(faults: Iterable[str], separator: str = ", ") -> str:
    """List the first few faults and count the others."""
    faults = list(faults)
    rest = len(faults) - _SHOWN
    return separator.join([*faults[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])


def is_tokenizer_at(folder: Path) -> bool:
    """Tell whether a folder has files of a tokenizer."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def weight_files(folder: Path) -> list[Path]:
    """Find the files of weights that transformers would read; an index stands in front of the files that it names.

    Raises:
        ConfigError: the index is damaged.
    """
    found = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if found is None or found.suffix != ".json":
        return [] if found is None else [found]
    shards = read_json(found).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ConfigError(f"{found} is no index of weights: it has no weight_map from weights to files")
    return [found, *(folder / name for name in sorted(set(shards.values())))]


def check_weight_files(folder: Path) -> None:
    """Refuse files of weights that are missing, damaged or not what their names say.

    Raises:
        ConfigError: the message names each of them and its fault.
    """
    files = weight_files(folder)
    faults = [f"{file} {fault}" for file in files if (fault := fault_of_file(file))]
    if faults:
        named = f"{files[0]} names {len(files) - 1} files: " if len(files) > 1 else ""
        raise ConfigError(named + listed(faults, "; "))


def _name_in_file(model: PreTrainedModel, name: str) -> str:
    """Give a weight's name, and with it the one that it has in files where transformers gives it another."""
    # First by the renamings that these files needed; one of them may be unused just because this weight is missing.
    for of_these_files in (True, False):
        found = _renamed_back(model, name, of_these_files)
        if found != name:
            return f"{name} (in files: {found})"
    return name


def _renamed_back(model: PreTrainedModel, name: str, of_these_files: bool) -> str:
    used = getattr(model, "_weight_conversions", None)
    try:
        if not of_these_files:
            cast(Any, model)._weight_conversions = None  # transformers takes all that the kind of model has then
        [found] = revert_weight_conversion(model, {name: torch.empty(0)})
        return found
    except Exception:  # noqa: BLE001 - weights that are put together of several in a file have no one name there
        return name
    finally:
        cast(Any, model)._weight_conversions = used


def _is_of(model: PreTrainedModel, name: str) -> bool:
    """Tell whether a weight that the model does not have belongs to a part that it has."""
    if _COMPUTED.search(name):
        return False
    base = getattr(model, model.base_model_prefix, None)
    inside = name.removeprefix(f"{model.base_model_prefix}.")
    part = inside.split(".")[0]
    if not isinstance(base, nn.Module):
        # It is the base itself, of which checkpoints have the weights with or without the prefix.
        return _has_weights(model, part)
    if inside != name:
        # All of the base computes; an empty module stands where a head was left out.
        return not _is_empty(base, inside)
    return _has_weights(model, part) or _has_weights(base, part)


def _has_weights(module: nn.Module, child: str) -> bool:
    part = getattr(module, child, None)
    if isinstance(part, Tensor):
        return True
    return isinstance(part, nn.Module) and bool(part.state_dict())


def _is_empty(module: nn.Module, name: str) -> bool:
    """Tell whether a weight's name leads to a module that has no weights, such as a head that was left out."""
    for piece in name.split("."):
        child = getattr(module, piece, None)
        if not isinstance(child, nn.Module):
            return False
        if not child.state_dict():
            return True
        module = child
    return False


def _check_files(name: str, files: Iterable[str]) -> None:
    """Look at those of a local folder's files that are there; what a hub gives is looked at after an error."""
    if os.path.isfile(name):
        raise ConfigError(f"{name} is a file; give the folder that it is in")
    if os.path.isdir(name):
        for path in (Path(name) / file for file in files):
            if path.exists():
                check_file(path)


def _check_weights(name: str, what: str) -> None:
    if os.path.isdir(name):
        if (Path(name) / _ADAPTER).exists():
            raise _is_adapter(name, what)
        check_weight_files(Path(name))
        shards = sorted(Path(name).glob("*-of-*.safetensors")) + sorted(Path(name).glob("*-of-*.bin"))
        if shards and not weight_files(Path(name)):
            raise ConfigError(
                f"{what} {name!r} has weights in several files ({shards[0].name}, ...), but their index is missing: "
                f"{_WEIGHTS[1 if shards[0].suffix == '.safetensors' else 3]}"
            )


def _is_adapter(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"{what} {name!r} is an adapter of PEFT ({_ADAPTER}) for another model: merge it into that model "
        "(merge_and_unload) and save the whole"
    )


@contextmanager
def _told(name: str, what: str, files: Iterable[str]) -> Iterator[None]:
    """Say in one line why something could not be loaded, whichever error of whichever library it was."""
    try:
        yield
    except (GitLLMError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library has its own errors for a file that is broken in its own way
        raise _explained(name, what, files, error) from error


def _explained(name: str, what: str, files: Iterable[str], error: Exception) -> ConfigError:
    folder = Path(name) if os.path.isdir(name) else folder_of_hub(name)
    reason = first_line(error)
    begin = f"{what} {name!r} cannot be loaded: "
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return ConfigError(
            f"{begin}it asks for code of its own (auto_map in its configuration), which is not run here. Take a model "
            "of a type that transformers has"
        )
    if folder is not None:
        faults = [f"{folder / file} {fault}" for file in files if (fault := _fault_if_there(folder / file))]
        if faults:
            return ConfigError(begin + listed(faults, "; "))
    if isinstance(error, OSError) and not os.path.isdir(name):
        return ConfigError(
            f"{begin}it is neither a local folder with a model in it nor a name that the model hub answers to from "
            f"here ({reason})"
        )
    if files == TOKENIZER_FILES and folder is not None:
        there = [file for file in files if (folder / file).exists()]
        return ConfigError(
            f"{begin}of a tokenizer's files it has {listed(there) or 'none'}, others of {', '.join(files)} are missing "
            f"or one of these does not fit ({reason})"
        )
    if not isinstance(error, (OSError, ValueError)):
        reason = f"{type(error).__name__}: {reason}"
    return ConfigError(begin + reason)


def _fault_if_there(path: Path) -> str | None:
    return fault_of_file(path) if path.exists() else None


def folder_of_hub(name: str) -> Path | None:
    """Find where the hub's files of this name are kept on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that a hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None
