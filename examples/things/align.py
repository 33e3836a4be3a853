"""Before the language model is asked: the image encoder learns the drawings' names, and the projection their words.

A linear layer takes the features of each of a picture's tokens near words of what it is called: the first three spell
its name, one of the tokenizer's tokens each, and the fourth says its kind, and a person's skin. The encoder's later
stages are trained with it, as they know photographs alone. The language model then reads words that it knows, somewhat
blurred, from the first step on, and has to learn to say them.
``python -m examples.things`` runs it, as ``python -m examples.things.align CONFIG ROWS OUTPUT``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, dropout, grid_sample, normalize
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.easyvqa.commands import exit_status
from examples.easyvqa.errors import DemoError
from examples.easyvqa.folders import replaced_folder
from examples.things.paths import ENCODER, PROJECTION
from examples.things.rows import KIND, SEED
from gitllm_plugin.modeling.pixels import normalize_pixels

KEPT = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.2.")
"""Stages that stay as they are: edges and colours are the same in drawings, and they are half of the time."""

NAMED = ("thing", "person", "kind")
"""The rows whose answers say what is seen."""

WEIGHTS = {"skin": 2.0}
"""Of regards that few pictures have and little tells apart; the others count 1."""

SAID_BY = {"name": slice(0, 3), "kind": slice(3, 4), "skin": slice(3, 4)}
"""The tokens of a picture that say a regard, one of the tokenizer's tokens each."""

UNNAMED = -1
"""In the place of a name's number: the picture has none."""

_EPOCHS, _BATCH, _DECAY = 10, 64, 0.05
_ENCODER_RATE, _RATE = 1e-3, 2e-3
_TEMPERATURE, _DROPOUT, _SMOOTHING = 0.04, 0.2, 0.1
_LOOKED_AT = 500  # pictures, for the length of vectors
_TURN = 0.26  # radians, at most
_SHIFT = 0.12  # of half a side, at most
_SCALE, _SHAPE = (0.75, 1.15), (0.85, 1.18)  # of what is seen: its size, and width by height


@dataclass(frozen=True)
class Names:
    """What pictures are called in one regard; D is the language model's width.

    Attributes:
        words: ``[K, S, D]``, the vectors that S tokens of a picture should have for each of K names.
        said_by: the places of these S among a picture's tokens.
        targets: long ``[N]``, which of the names is each picture's, or :data:`UNNAMED`.
        weight: how much a picture's loss in this regard counts.
    """

    words: Tensor
    said_by: slice
    targets: Tensor
    weight: float = 1.0

    @property
    def around_their_mean(self) -> Tensor:
        """The words ``[K, S, D]`` without what all share, beside which what tells two skins apart is small."""
        return self.words - self.words.mean(0)

    @cached_property
    def directions(self) -> Tensor:
        """Each name's words ``[K, S * D]``, of length one; every step compares with them."""
        return normalize(self.around_their_mean.flatten(1), dim=1)

    def similarity(self, vectors: Tensor) -> Tensor:
        """Compare what pictures' tokens say, ``[B, T, D]``, with each name: cosines ``[B, K]``."""
        return normalize(vectors[:, self.said_by].flatten(1), dim=1) @ self.directions.T


def align(config: Path, rows: Path, output: Path) -> None:
    """Train encoder and projection of a configuration's model, and write both.

    Args:
        config: whose projection is ``pixel_shuffle`` and whose encoder is timm's EfficientNet.
        rows: the folder of ``make_data``.
        output: the folder that gets :data:`ENCODER` and :data:`PROJECTION`; it appears only when it is complete.

    Raises:
        DemoError: the configuration makes another number of tokens of a picture than name, kind and skin are said by.
    """
    from gitllm_plugin.host.launch import build_model

    files = json.dumps([str(rows / "train" / f"{name}.jsonl") for name in NAMED])
    storage = f"datasets.m3it.build_info.annotations.train.storage={files}"
    cfg, task, model = build_model(config, [storage, "model.load_finetuned=false", "model.dtype=float32"])
    torch.manual_seed(SEED)
    examples = task.build_datasets(cfg)["m3it"]["train"]
    pictures, normal, called = _read(DataLoader(examples, batch_size=32, collate_fn=examples.collater))
    vocabulary = model.model.language_model.get_input_embeddings().weight.detach().float()
    names = names_of(vocabulary, model.text_encoder.tokenizer, called)
    tower = model.model.image_encoder.tower
    layer = fit(tower, pictures, normal, names, model.model.projection.factor)
    centre = torch.cat([each.words.flatten(0, 1) for each in names]).mean(0)
    start_projection(model.model.projection, layer, centre)
    with replaced_folder(output) as folder:
        tower.save_pretrained(folder / ENCODER)
        torch.save({"model": model.trainable_state_dict()}, folder / PROJECTION)


def start_projection(projection: Any, layer: nn.Linear, centre: Tensor) -> None:
    """Give a ``pixel_shuffle`` projection the weights of a layer: all patches of a token count alike.

    Args:
        projection: changed in place.
        layer: from a patch's feature ``[C]`` to vectors ``[D]`` around the origin.
        centre: ``[D]``, around which they are to be.
    """
    squares = projection.factor**2
    with torch.no_grad():
        projection.weight.copy_(layer.weight.repeat(1, squares) / squares)
        projection[0].bias.copy_(layer.bias + centre)


def names_of(vocabulary: Tensor, tokenizer: Any, called: Sequence[Mapping[str, str]]) -> list[Names]:
    """Find the names of pictures in word space.

    Args:
        vocabulary: the language model's input vectors ``[V, D]``.
        tokenizer: of the language model.
        called: what each picture is called, by regard.

    Returns:
        A regard's names each.
    """
    found = []
    for regard in sorted({regard for each in called for regard in each}):
        names = sorted({each[regard] for each in called if regard in each})
        ids = tokenizer([f" {name}" for name in names], add_special_tokens=False).input_ids
        number = {name: index for index, name in enumerate(names)}
        targets = [number[each[regard]] if regard in each else UNNAMED for each in called]
        places = SAID_BY[regard]
        words = torch.stack([spell(vocabulary[tokens], places.stop - places.start) for tokens in ids])
        found.append(Names(words, places, torch.tensor(targets), WEIGHTS.get(regard, 1.0)))
    return found


def spell(tokens: Tensor, number: int) -> Tensor:
    """Say a name's tokens, ``[W, D]``, one by one with so many vectors, ``[number, D]``.

    The last one is the mean of all that are left; a name of fewer tokens repeats its last one.
    """
    first, left = tokens[: number - 1], tokens[number - 1 :]
    last = left.mean(0, keepdim=True) if len(left) else tokens[-1:]
    return torch.cat([first, last.expand(number - len(first), -1)])


def fit(
    tower: nn.Module, pictures: Tensor, normal: tuple[Tensor, Tensor], names: Sequence[Names], factor: int
) -> nn.Linear:
    """Train an encoder's later stages and a linear layer whose vectors tell the names apart by their direction.

    Args:
        tower: gives ``last_hidden_state``, ``[B, C, H, W]``, of normalized pictures.
        pictures: uint8 ``[N, 3, H, W]``.
        normal: mean and standard deviation that the encoder's pixels have.
        names: what the pictures are called.
        factor: the side, in patches, of the square that becomes one token.

    Returns:
        The layer, from a token's mean feature ``[C]`` to vectors ``[D]`` that are as long as the words are, around
        their mean.

    Raises:
        DemoError: see :func:`align`.
    """
    trained = _keep_early_stages(tower)
    _, tokens, width = token_features(tower, normalize_pixels(pictures[:2], *normal), factor).shape
    needed = max(some.said_by.stop for some in names)
    if tokens != needed:
        raise DemoError(
            f"a picture of {pictures.shape[3]} pixels has {tokens} tokens, and what it is called is said by {needed}: "
            "set image_size or model.projection_factor so that there are as many"
        )
    layer = nn.Linear(width, names[0].words.shape[2])
    classes = nn.ModuleList(nn.Linear(width, len(some.words)) for some in names)
    heads = [*layer.parameters(), *classes.parameters()]
    groups = [{"params": trained, "lr": _ENCODER_RATE}, {"params": heads, "lr": _RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=_DECAY)
    steps = _EPOCHS * -(-len(pictures) // _BATCH)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, pct_start=0.1)
    for batch in tqdm(_batches(len(pictures)), "names", steps, disable=None):
        varied = vary(normalize_pixels(pictures[batch], *normal))
        found = dropout(token_features(tower, varied, factor), _DROPOUT)
        loss = _loss(found, layer, classes, names, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    tower.eval().requires_grad_(False)
    with torch.no_grad():
        some = normalize_pixels(pictures[:: max(1, len(pictures) // _LOOKED_AT)], *normal)
        length = torch.cat([each.around_their_mean.flatten(0, 1) for each in names]).norm(dim=1).mean()
        scale = length / layer(token_features(tower, some, factor)).norm(dim=2).mean()
        layer.weight *= scale
        layer.bias *= scale
    return layer


def _loss(found: Tensor, layer: nn.Module, classes: nn.ModuleList, names: Sequence[Names], batch: Tensor) -> Tensor:
    """Add up what the regards lose, a picture's mean: a regard counts as often as pictures have a name in it."""
    vectors, whole, loss = layer(found), found.mean(1), found.new_zeros(())
    for some, classifier in zip(names, classes, strict=True):
        targets = some.targets[batch]
        by_words = some.similarity(vectors) / _TEMPERATURE
        told = cross_entropy(by_words, targets, ignore_index=UNNAMED, reduction="sum")
        # Names that share most of their words are told apart by a classifier of their own.
        told += cross_entropy(
            classifier(whole), targets, ignore_index=UNNAMED, label_smoothing=_SMOOTHING, reduction="sum"
        )
        loss = loss + some.weight * told
    return loss / len(batch)


def _keep_early_stages(tower: nn.Module) -> list[nn.Parameter]:
    """Set the tower to training but for its early stages; gives what is trained."""
    tower.requires_grad_(True).train()
    for name, module in tower.named_modules():
        inside = f"{name.split('timm_model.')[-1]}."
        if inside.startswith(KEPT):
            module.requires_grad_(False).eval()
    return [parameter for parameter in tower.parameters() if parameter.requires_grad]


def token_features(tower: nn.Module, pixels: Tensor, factor: int) -> Tensor:
    """Give the mean feature of each of a picture's tokens ``[B, T, C]``, in the order of the projection's."""
    return avg_pool2d(tower(pixels).last_hidden_state, factor).flatten(2).transpose(1, 2)


def _batches(number: int) -> Iterator[Tensor]:
    for _ in range(_EPOCHS):
        yield from torch.randperm(number).split(_BATCH)


def vary(pixels: Tensor) -> Tensor:
    """Turn, shift and stretch each picture a little; what comes in at the sides is as the border is."""

    def drawn(least: float, most: float) -> Tensor:
        return torch.empty(len(pixels)).uniform_(least, most)

    size, turn, shape = drawn(*_SCALE), drawn(-_TURN, _TURN), drawn(*_SHAPE)
    where = torch.zeros(len(pixels), 2, 3)
    where[:, 0, 0], where[:, 0, 1] = size * turn.cos() * shape, -size * turn.sin()
    where[:, 1, 0], where[:, 1, 1] = size * turn.sin(), size * turn.cos() / shape
    where[:, 0, 2], where[:, 1, 2] = drawn(-_SHIFT, _SHIFT), drawn(-_SHIFT, _SHIFT)
    grid = affine_grid(where, list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _read(batches: DataLoader) -> tuple[Tensor, tuple[Tensor, Tensor], list[dict[str, str]]]:
    """Give all pictures, uint8 ``[N, 3, H, W]``, their normalization, and what each is called."""
    pictures, called, normal = [], [], None
    for samples in tqdm(batches, "pictures", disable=None):
        normal = normal or (samples["image_mean"].reshape(-1, 3)[0], samples["image_std"].reshape(-1, 3)[0])
        first = len(called)
        pictures += samples["image"]
        called += [{} for _ in samples["image"]]
        which = samples.get("image_index", range(len(samples["image"])))
        for index, question, answer in zip(which, samples["question"], samples["text_output"], strict=True):
            called[first + int(index)] |= regards(question, answer)
    assert normal is not None
    return torch.stack(pictures), normal, called


def regards(question: str, answer: str) -> dict[str, str]:
    """Say what a picture is called by an answer: its name, its kind, or a person's name and skin."""
    if question == KIND:
        return {"kind": answer}
    # Names and skin are learnt from all who share them.
    return dict(zip(("name", "skin"), answer.split(", "), strict=False))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: align(*map(Path, sys.argv[1:]))))
