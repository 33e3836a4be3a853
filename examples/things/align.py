"""Starts the projection in word space: a picture's vectors, on average, near the mean vector of its name's words.

The language model then reads words that it knows, somewhat blurred, from the first step on, and has to learn to say
them; what an image vector means is nothing that it must find out by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.things.rows import SEED
from gitllm_plugin.common.files import atomic_path
from gitllm_plugin.models.samples import normalized_pixels

_EPOCHS, _BATCH, _RATE, _DECAY = 15, 256, 2e-3, 0.05
_TEMPERATURE, _DROPOUT = 0.04, 0.3


def align(config: Path, files: Sequence[Path], output: Path) -> None:
    """Fit the projection of a configuration's model and write it as a checkpoint for ``model.finetuned``.

    Args:
        config: whose projection is ``pixel_shuffle``.
        files: rows whose answers are names of what is seen.
        output: the checkpoint.
    """
    from gitllm_plugin.host.launch import build_model

    storage = "datasets.m3it.build_info.annotations.train.storage=" + json.dumps([str(file) for file in files])
    cfg, task, model = build_model(config, [storage, "model.load_finetuned=false"])
    torch.manual_seed(SEED)
    pictures = task.build_datasets(cfg)["m3it"]["train"]
    features, names = _read(model, DataLoader(pictures, batch_size=32, collate_fn=pictures.collater))
    vocabulary = model.model.language_model.get_input_embeddings().weight.detach().float()
    centre = vocabulary.mean(0)
    each = sorted(set(names))
    ids = model.text_encoder.tokenizer([f" {name}" for name in each], add_special_tokens=False).input_ids
    words = torch.stack([vocabulary[tokens].mean(0) for tokens in ids])
    number = {name: index for index, name in enumerate(each)}
    layer = fit(features, words - centre, torch.tensor([number[name] for name in names]))
    projection = model.model.projection
    squares = projection.factor**2
    with torch.no_grad():  # all patches of a token count alike
        projection.weight.copy_(layer.weight.repeat(1, squares) / squares)
        projection[0].bias.copy_(layer.bias + centre)
    with atomic_path(output) as partial:
        torch.save({"model": model.trainable_state_dict()}, partial)


def fit(features: Tensor, words: Tensor, targets: Tensor) -> nn.Linear:
    """Find the linear layer whose vectors tell the names apart by their direction, and are as long as theirs.

    Args:
        features: ``[N, C]``, each picture's mean over its patches.
        words: ``[K, D]``, each name's, around zero.
        targets: long ``[N]``, the name of each picture.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-2
    standard = (features - mean) / deviation
    layer = nn.Linear(features.shape[1], words.shape[1])
    optimizer = torch.optim.AdamW(layer.parameters(), _RATE, weight_decay=_DECAY)
    steps = _EPOCHS * -(-len(features) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps, pct_start=0.1)
    directions = normalize(words, dim=1)
    for _ in tqdm(range(_EPOCHS), "word space", disable=None):
        for batch in torch.randperm(len(features)).split(_BATCH):
            vectors = normalize(layer(dropout(standard[batch], _DROPOUT)), dim=1)
            loss = cross_entropy(vectors @ directions.T / _TEMPERATURE, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    found = nn.Linear(features.shape[1], words.shape[1])
    with torch.no_grad():
        scale = words.norm(dim=1).mean() / layer(standard).norm(dim=1).mean()
        found.weight.copy_(layer.weight * scale / deviation)
        found.bias.copy_(layer.bias * scale - found.weight @ mean)
    return found


@torch.no_grad()
def _read(model: Any, batches: DataLoader) -> tuple[Tensor, list[str]]:
    """Give each picture's mean feature ``[N, C]`` and its name."""
    features, names = [], []
    encoder = model.model.image_encoder.eval()
    for samples in tqdm(batches, "features", disable=None):
        pixels = normalized_pixels(samples["image"], samples)
        found = encoder(pixels).float().mean(1)
        index = samples.get("image_index")
        features.append(found if index is None else found[index])
        names += samples["text_output"]
    return torch.cat(features), names
