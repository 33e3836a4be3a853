"""Whatever is loaded x whatever can be wrong with its files: an error that names file and weight, or the same numbers.

A new kind of thing that can be loaded is covered by a line in ``KINDS``, a new kind of fault by a line in ``FAULTS``.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from gitllm_plugin.common.weights import read_checkpoint, write_checkpoint, write_weights
from gitllm_plugin.config.model import BuildSettings
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling import LoraSettings, build_git_llm, load_folder, load_trainable_state_dict
from gitllm_plugin.modeling.git import load_git
from gitllm_plugin.modeling.published import load_published, read_published
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, tiny_image_encoder, tiny_language_model, tiny_tokenizer
from gitllm_plugin.modeling.trainable import trainable_state_dict
from gitllm_plugin.modeling.vision import ImageEncoder
from tests.modeling.batches import FAMILY_NAMES

PUBLISHED = Path(__file__).parents[1] / "data" / "published"
SMALL: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SEEN: dict[str, Any] = {"image_size": 32, "patch_size": 8}
QUICK = BuildSettings(trainable="proj", dtype="float32", self_test=False)


@dataclass(frozen=True)
class Kind:
    """Something that is loaded from files.

    Attributes:
        make: writes it into a folder that is there.
        load: reads it, and gives all weights by name.
        other: of a weight's name in a file: whether it belongs to a part that is not read.
        slow: one of many of a sort.
    """

    make: Callable[[Path], None]
    load: Callable[[Path], dict[str, Tensor]]
    other: Callable[[str], bool] = field(default=lambda name: False)
    slow: bool = False


def language_model(family: str, **saving: Any) -> Kind:
    def make(folder: Path) -> None:
        tiny_language_model(family).save_pretrained(folder, **saving)
        tiny_tokenizer().save_pretrained(folder)

    def load(folder: Path) -> dict[str, Tensor]:
        return build_git_llm(str(folder), "tiny:clip", QUICK)[0].language_model.state_dict()

    return Kind(make, load, slow=family not in ("llama", "opt", "gpt2"))


def in_bin_files(folder: Path) -> None:
    """A language model as older releases saved it."""
    model = tiny_language_model("llama")
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(folder)


def image_encoder(make: Callable[[Path], Any], part: str = "", slow: bool = False) -> Kind:
    def load(folder: Path) -> dict[str, Tensor]:
        state = ImageEncoder.from_pretrained(str(folder), dtype=torch.float32).tower.state_dict()
        return {name: value for name, value in state.items() if "pooler" not in name and not name.startswith("head.")}

    return Kind(make, load, lambda name: bool(part) and not name.startswith(part), slow)


def make_git(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "words.txt")).save_pretrained(folder)
    (folder / "words.txt").unlink()
    ids: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(words)}
    config = transformers.GitConfig(vision_config={**SMALL, **SEEN}, **SMALL, **ids)
    transformers.GitForCausalLM(config).save_pretrained(folder)


def make_whole(folder: Path, **settings: Any) -> None:
    """An exported folder, without the checksums that would tell most faults before they are met."""
    model, tokenizer = build_git_llm("tiny:llama", "tiny:siglip", QUICK, max_images=2, **settings)
    folder.rmdir()
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    model.save_pretrained(folder, tokenizer=tokenizer, image_processor=processor)
    description = json.loads((folder / "git_llm.json").read_text())
    description.pop("checksums", None)
    (folder / "git_llm.json").write_text(json.dumps(description))


def make_with_adapter(folder: Path) -> None:
    make_whole(folder, lora=LoraSettings(), trainable="proj+lora")


def load_whole(folder: Path) -> dict[str, Tensor]:
    loaded = load_folder(folder, "float32", self_test=False)
    return {name: value for name, value in loaded.model.state_dict().items() if ".head." not in name}


def make_published(folder: Path) -> None:
    shutil.copyfile(PUBLISHED / "llama_video" / "config.json", folder / "config.json")
    shutil.copyfile(PUBLISHED / "llama_video" / "weights.safetensors", folder / "model.safetensors")


def load_as_published(folder: Path) -> dict[str, Tensor]:
    return load_published(*read_published(folder), lora_alpha=32).state_dict()


def trained() -> torch.nn.Module:
    return build_git_llm("tiny:gpt2", "tiny:clip", QUICK, lora=LoraSettings(), trainable="proj+lora")[0]


def checkpoint(name: str) -> Kind:
    def make(folder: Path) -> None:
        state = trainable_state_dict(trained())
        if name.endswith(".pth"):
            write_checkpoint(folder / name, {"model": state})
        else:
            write_weights(folder / name, state)

    def load(folder: Path) -> dict[str, Tensor]:
        model = trained()
        load_trainable_state_dict(model, read_checkpoint(folder / name)["model"], str(folder / name))
        return trainable_state_dict(model)

    return Kind(make, load)


def seen_and_read(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        parts = {"text_config": {**SMALL, "vocab_size": 99}, "vision_config": {**SMALL, **SEEN}}
        config = getattr(transformers, f"{name}Config")(**parts)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)

    return make


def classifier(folder: Path) -> None:
    transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **SEEN)).save_pretrained(folder)


def tower(kind: str) -> Callable[[Path], None]:
    return lambda folder: tiny_image_encoder(kind).tower.save_pretrained(folder)


KINDS = {
    **{f"language model {family}": language_model(family) for family in FAMILY_NAMES},
    "language model in shards": language_model("llama", max_shard_size="60KB"),
    "language model in .bin": Kind(in_bin_files, language_model("llama").load),
    **{
        f"image encoder {kind}": image_encoder(tower(kind), slow=kind not in ("siglip", "dinov2", "timm"))
        for kind in IMAGE_ENCODERS
    },
    "image encoder of a CLIP with texts": image_encoder(seen_and_read("CLIP"), "vision_model."),
    "image encoder of a SigLIP with texts": image_encoder(seen_and_read("Siglip"), "vision_model.", slow=True),
    "image encoder of a classifier": image_encoder(classifier, "vit."),
    "image encoder of a GIT": image_encoder(make_git, "git.image_encoder.", slow=True),
    "plain GIT": Kind(make_git, lambda folder: load_git(str(folder))[0].state_dict()),
    "exported folder": Kind(make_whole, load_whole),
    "exported folder with an adapter": Kind(
        lambda folder: make_whole(folder, lora=LoraSettings(), trainable="proj+lora"), load_whole
    ),
    "published checkpoint": Kind(make_published, load_as_published),
    "checkpoint of a run": checkpoint("checkpoint_latest.pth"),
    "weights of a run": checkpoint("checkpoint_latest.safetensors"),
}


def weights_in(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, weights_only=True)
    return content.get("model", content)


def put_weights(file: Path, weights: dict[str, Tensor]) -> None:
    if file.suffix == ".safetensors":
        save_file(weights, file, metadata={"format": "pt"})
    else:
        torch.save({"model": weights} if file.suffix == ".pth" else weights, file)


def spread(names: list[str]) -> list[str]:
    """Some of the names, of all places in the file."""
    return [names[number * (len(names) - 1) // 4] for number in range(5)]


Change = Iterator[tuple[str | None, Callable[[], Any]]]


def change_weights(file: Path, change: Callable[[dict[str, Tensor], str], Any]) -> Change:
    weights = weights_in(file)
    for name in spread(sorted(weights)):

        def apply(name: str = name) -> None:
            changed = dict(weights)
            change(changed, name)
            put_weights(file, changed)

        yield name, apply


def with_one_more_row(weights: dict[str, Tensor], name: str) -> None:
    value = weights[name]
    weights[name] = torch.cat([value, value[:1]]) if value.ndim else value[None].repeat(2)


def change_bytes(change: Callable[[Path], Any]) -> Callable[[Path], Change]:
    return lambda file: iter([(None, lambda: change(file))])


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


#: Fault -> what it does to a file; and the endings of the files that can have it, None: all.
FAULTS: dict[str, tuple[Callable[[Path], Change], tuple[str, ...] | None]] = {
    "a weight is missing": (
        lambda file: change_weights(file, lambda weights, name: weights.pop(name)),
        (".safetensors", ".bin", ".pth"),
    ),
    "a weight too many": (
        lambda file: change_weights(file, lambda weights, name: weights.update({f"{name}_2": torch.ones(3)})),
        (".safetensors", ".bin", ".pth"),
    ),
    "a weight of another shape": (
        lambda file: change_weights(file, with_one_more_row),
        (".safetensors", ".bin", ".pth"),
    ),
    "cut in half": (change_bytes(lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])), None),
    "a pointer of git-lfs": (
        change_bytes(
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 2147\n")
        ),
        None,
    ),
    "empty": (change_bytes(lambda file: file.write_bytes(b"")), None),
    "random bytes": (change_bytes(lambda file: file.write_bytes(random.Random(7).randbytes(3000))), None),
    "broken JSON": (change_bytes(lambda file: file.write_text('{"model_type": "llama", ')), (".json",)),
    "JSON of another form": (change_bytes(lambda file: file.write_text("[1, 2]")), (".json",)),
    "a page of a web site": (
        change_bytes(lambda file: file.write_text("<!DOCTYPE html>\n<html>Sign in</html>\n")),
        None,
    ),
    "missing": (change_bytes(lambda file: file.unlink()), None),
    "a folder in its place": (change_bytes(as_folder), None),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    made: dict[str, tuple[Path, dict[str, Tensor]]] = {}

    def make(kind: str) -> tuple[Path, dict[str, Tensor]]:
        if kind not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("made") / "model"
            folder.mkdir()
            KINDS[kind].make(folder)
            made[kind] = folder, {name: value.clone() for name, value in KINDS[kind].load(folder).items()}
        return made[kind]

    return make


def is_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def verdict(kind: Kind, folder: Path, file: Path, weight: str | None, expected: dict[str, Tensor]) -> str | None:
    """What is wrong with how a faulty folder was taken; None: nothing."""
    try:
        found = kind.load(folder)
    except (ConfigError, DataError) as error:
        said = str(error)
        if weight is not None:
            # Checkpoints of a whole have prefixes where a part is read: PEFT's, or the part's.
            known = [rest for rest in (weight.split(".", count)[-1] for count in range(4)) if "." in rest]
            return None if any(rest in said for rest in known or [weight]) else f"does not name {weight}: {said}"
        return None if file.name in said or "has no tokenizer" in said else f"does not name the file: {said}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {error}"
    return None if is_same(found, expected) else "other weights without a word"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if k.slow else ()) for n, k in KINDS.items()])
def test_faulty_files_are_named_or_change_nothing(name, fault, originals, tmp_path):
    kind, (whole, expected) = KINDS[name], originals(name)
    change, endings = FAULTS[fault]
    wrong, tried = [], 0
    for original in sorted(path for path in whole.rglob("*") if path.is_file()):
        if endings is not None and original.suffix not in endings:
            continue
        folder = tmp_path / "model"
        place = folder / original.relative_to(whole)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        for weight, apply in change(place):
            apply()
            tried += 1
            if said := verdict(kind, folder, place, weight, expected):
                wrong.append(f"{place.relative_to(folder)} {weight or ''}: {said}")
    assert tried or endings == (".json",)
    assert not wrong, "\n".join(wrong)
