"""Writes small shards with real pictures, for any test that reads them."""

import base64
import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.shards.format import Manifest, Shard, SplitManifest, add_to_tar, write_group, write_manifest
from tests.m3it_files import write_m3it_jsonl


def make_groups(jsonl: Path, config: str, split: str, rows: int, texts_per_image: int = 1, **keys) -> list[Group]:
    """Writes a uniform M3IT file and gives its rows as records; ``keys`` go to ``write_m3it_jsonl``."""
    rows_written = write_m3it_jsonl(jsonl, rows, config=config, texts_per_image=texts_per_image, **keys)
    groups = []
    for number, first in enumerate(range(0, rows, texts_per_image)):
        about_one = rows_written[first : first + texts_per_image]
        images = about_one[0]["image_base64_str"]
        images = [images] if isinstance(images, str) else images
        texts = tuple(
            Text(row["id"], config, row["instruction"], row["inputs"], (row["outputs"],)) for row in about_one
        )
        groups.append(Group(config, split, number, tuple(map(base64.b64decode, images)), texts))
    return groups


def write_shards(folder: Path, groups: Sequence[Group], records_per_shard: int = 4) -> Manifest:
    """Writes records as shards, with a manifest, and returns it."""
    parts: dict[str, dict[str, list[Group]]] = {}
    for group in groups:
        parts.setdefault(group.config, {}).setdefault(group.split, []).append(group)
    manifest = Manifest(
        {
            config: {
                split: _write_split(folder, f"{config}/{split}", part, records_per_shard)
                for split, part in splits.items()
            }
            for config, splits in parts.items()
        }
    )
    write_manifest(manifest, folder)
    return manifest


def _write_split(folder: Path, name: str, groups: list[Group], size: int) -> SplitManifest:
    starts = range(0, len(groups), size)
    return SplitManifest(
        tuple(
            _write_shard(folder, f"{name}/{n:06d}.tar", groups[start : start + size]) for n, start in enumerate(starts)
        )
    )


def _write_shard(folder: Path, file: str, groups: list[Group]) -> Shard:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        blocks = [add_to_tar(tar, write_group(group)) for group in groups]
    data = path.read_bytes()
    return Shard(
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        groups=len(groups),
        texts=sum(len(group.texts) for group in groups),
        images=sum(len(group.images) for group in groups),
        bytes=len(data),
        record_blocks=" ".join(map(str, blocks)),
        record_texts=" ".join(str(len(group.texts)) for group in groups),
    )
