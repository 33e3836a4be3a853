"""What LAVIS's data sets lack on this machine, told before anything is built: each place, and how it is filled.

LAVIS fetches annotations as soon as a data set is named, and finds out that there are no pictures when it opens the
first. Here nothing is downloaded unasked (``GITLLM_DOWNLOAD=1`` asks), and all that is missing is told at once.
"""

import dataclasses
import functools
import os
import random
import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.host.data_addresses import how_to_get_files
from gitllm_plugin.host.patching import Repairs

DOWNLOAD = "GITLLM_DOWNLOAD"
"""The environment variable that lets LAVIS fetch annotations."""

_MOST_FOLDERS = 8  # of a split, of which a picture is looked at

_BUILDER = "lavis.datasets.builders.base_dataset_builder:BaseDatasetBuilder"
_REPAIRS = Repairs()
_repair = _REPAIRS.of


@dataclasses.dataclass(frozen=True)
class Lack:
    """Something that a data set reads and that is not there.

    Attributes:
        what: such as ``annotations of train``.
        place: where it belongs.
        how: the command that puts it there, or where it comes from.
        fetched: whether LAVIS would fetch it.
    """

    what: str
    place: str
    how: str
    fetched: bool = False


def refuse_unasked_downloads() -> None:
    """Apply all repairs of this file; LAVIS must have been imported. Calling it again does nothing."""
    for repair in _REPAIRS:
        repair()


def may_download() -> bool:
    """Tell whether the environment asks for downloads."""
    return os.environ.get(DOWNLOAD, "").lower() not in ("", "0", "false", "no")


def find_lacks(name: str, builder: Any) -> list[Lack]:
    """List what a builder of LAVIS's would read and is not there.

    Args:
        name: the data set's, as registered.
        builder: a builder, made of its configuration; nothing is built or downloaded.
    """
    from lavis.common.utils import get_cache_path
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    info = builder.config.get("build_info") or {}
    found: list[Lack] = []
    if info.get("annotations") is not None:
        found += _lacking_annotations(name, info["annotations"])
    elif type(builder)._download_ann is BaseDatasetBuilder._download_ann:
        found.append(Lack("annotations", "none is named", f"name them in datasets.{name}.build_info.annotations"))
    if "storage" in info:
        return [*found, *_lacking_shards(name, info["storage"])]
    kinds = builder.data_type
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        storage = (info.get(kind) or {}).get("storage")
        # What names its splits has a folder for each, and does not look for them in LAVIS's cache.
        splits = info.get("splits")
        places = [Path(storage or "", split) for split in splits] if splits else [get_cache_path(storage or "")]
        for place in map(Path, places):
            if not storage:
                found.append(Lack(kind, "no place is named", f"name it in datasets.{name}.build_info.{kind}.storage"))
            elif not place.exists() or (place.is_dir() and not any(place.iterdir())):
                how = how_to_get_files(name, place) if splits else _written_whole(storage)
                found.append(Lack(kind, f"{place}{os.sep}", how or how_to_get_files(name, place)))
    return found


def _lacking_annotations(name: str, annotations: Mapping[str, Any]) -> Iterator[Lack]:
    told = set()
    for split, node in annotations.items():
        if node is None:  # left out by the user
            continue
        for given, file, url in _annotation_files(node):
            # LAVIS copies what is elsewhere on this machine.
            if file in told or Path(file).is_file() or (url and Path(url).is_file()):
                continue
            told.add(file)
            if how := _written_whole(given):
                yield Lack(f"annotations of {split}", file, how)
                continue
            known = bool(url and "://" in url)
            yield Lack(f"annotations of {split}", file, _fetching(file, url) if known else _no_address(name), known)


def _annotation_files(node: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    """List the files of a split as given and whole, with their addresses; what is relative lies in LAVIS's cache."""
    from lavis.common.utils import get_cache_path

    files, addresses = _listed(node.get("storage")), _listed(node.get("url"))
    return [(file, str(get_cache_path(file)), url) for file, url in zip_longest(files, addresses) if file]


def _written_whole(given: str) -> str | None:
    """Say how a place is named that is meant from where one stands, as in a run of our own data sets."""
    there = Path(os.path.abspath(os.path.expanduser(given)))
    if os.path.isabs(given) or not there.exists():
        return None
    return f"{given} is there from where you stand, but LAVIS looks in its cache: write {there}"


def _fetching(file: str, url: str | None) -> str:
    return f"curl -fL --create-dirs -o {shlex.quote(file)} {shlex.quote(str(url))}"


def _no_address(name: str) -> str:
    return f"no address is known; {how_to_get_files(name, None)}"


def _listed(given: Any) -> list[Any]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)


def _lacking_shards(name: str, storage: Any) -> Iterator[Lack]:
    from braceexpand import braceexpand

    listed = [shard for part in _listed(storage) for text in part.split("::") for shard in braceexpand(text)]
    local = [shard for shard in listed if ":" not in shard.partition("/")[0]]
    missing = [shard for shard in local if not Path(shard).is_file()]
    if missing:
        what = f"{len(missing)} of {len(listed)} shards, the first"
        yield Lack(what, missing[0], how_to_get_files(name, None))


def _lacking_pictures(name: str, split: str, dataset: Any) -> Iterator[Lack]:
    """Read the first item of each folder that annotations name: it may have been unpacked elsewhere, or not at all."""
    from torch.utils.data import IterableDataset

    if isinstance(dataset, IterableDataset) or not len(dataset):
        return
    rows = getattr(dataset, "annotation", None)
    first: dict[str, int] = {}
    for number, row in enumerate(rows if isinstance(rows, list) and len(rows) == len(dataset) else ()):
        image = row.get("image") if isinstance(row, Mapping) else None
        first.setdefault(os.path.dirname(image) if isinstance(image, str) else "", number)
    folder = getattr(dataset, "vis_root", None)
    for number in sorted(first.values())[:_MOST_FOLDERS] or [0]:
        missing = _missing_file(dataset, number)
        if missing:
            how = how_to_get_files(name, Path(folder) if folder else None)
            yield Lack(f"a file that {split} names", missing, how)


def _missing_file(dataset: Any, number: int) -> str | None:
    """Name the file that an item is made of and that is not there; random numbers are drawn as if it was not read."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            item = dataset[number]
        # Git main leaves out in silence what it cannot open.
        return None if item is not None else _named_file(dataset, number)
    except FileNotFoundError as error:
        return str(error.filename or error)
    except Exception:  # whatever else is wrong is told where it is read
        return None
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _named_file(dataset: Any, number: int) -> str | None:
    """Name the picture of an annotation, where it is not there."""
    image = dataset.annotation[number].get("image")
    file = Path(dataset.vis_root, image) if isinstance(image, str) else None
    return str(file) if file and not file.is_file() else None


def _refuse(lacks: Mapping[str, Iterable[Lack]]) -> None:
    """Raise a DataError that tells all that is lacking, by data set."""
    lines = []
    for name, found in lacks.items():
        told = [line for lack in found for line in (f"  {lack.what}: {lack.place}", f"    {lack.how}")]
        lines += [f"the data set {name} lacks on this machine:", *told] if told else []
    if not lines:
        return
    if any(lack.fetched for found in lacks.values() for lack in found):
        lines.append(f"Nothing is downloaded unasked; with {DOWNLOAD}=1 in the environment LAVIS fetches annotations.")
    lines.append(
        "Other places are named in datasets.NAME.build_info; a split that is not wanted is left out by "
        "annotations.SPLIT=null"
    )
    raise DataError("\n".join(lines))


def _of_lavis(builder: Any) -> bool:
    """Tell whether a builder gets its files as LAVIS's do; those of M3IT look for them themselves."""
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    return type(builder).build_datasets is BaseDatasetBuilder.build_datasets


def _to_tell(name: str, builder: Any) -> list[Lack]:
    """List what a user has to get: all, or what LAVIS will not fetch."""
    return [lack for lack in find_lacks(name, builder) if not (lack.fetched and may_download())]


@_repair("lavis.tasks.base_task:BaseTask.build_datasets")
def tell_what_all_data_sets_lack(original: Any) -> Any:
    """A run is told what the first of its data sets lacks, after a while, and nothing of the others."""
    from lavis.common.registry import registry

    @functools.wraps(original)
    def build_datasets(self: Any, cfg: Any) -> Any:
        known = registry.mapping["builder_name_mapping"]
        builders = {name: known[name](node) for name, node in cfg.datasets_cfg.items()}
        _refuse({name: _to_tell(name, builder) for name, builder in builders.items() if _of_lavis(builder)})
        return original(self, cfg)

    return build_datasets


@_repair(f"{_BUILDER}.build_datasets")
def tell_what_it_lacks(original: Any) -> Any:
    """The same of one data set: ``load_dataset``."""
    from lavis.common.registry import registry

    @functools.wraps(original)
    def build_datasets(self: Any) -> Any:
        classes = registry.mapping["builder_name_mapping"].items()
        name = next((name for name, builder in classes if builder is type(self)), type(self).__name__)
        _refuse({name: _to_tell(name, self)})
        datasets = original(self)
        _refuse({name: [lack for split, data in datasets.items() for lack in _lacking_pictures(name, split, data)]})
        return datasets

    return build_datasets


@_repair(f"{_BUILDER}._download_ann")
def download_only_what_is_missing(original: Any) -> Any:
    """LAVIS's builders want the address of every file that is already there, and as many addresses as files.

    Raises:
        DataError: from the builder, of files that could not be fetched: their places, and the commands.
    """

    @functools.wraps(original)
    def download(self: Any) -> None:
        nodes = [node for node in self.config.build_info.annotations.values() if node is not None]
        wanted = {file: url for node in nodes for _, file, url in _annotation_files(node)}
        if all(Path(file).is_file() for file in wanted):
            return
        try:
            original(self)
        except (OSError, AssertionError, TypeError, ValueError) as error:  # also URLError
            lines = [f"annotations could not be fetched ({type(error).__name__}: {error}):"]
            for file, url in wanted.items():
                if not Path(file).is_file():
                    lines += [f"  {file}", f"    {_fetching(file, url)}"]
            raise DataError("\n".join(lines)) from error

    return download


@_repair("lavis.datasets.datasets.coco_vqa_datasets:COCOVQAEvalDataset.__init__")
def do_without_a_list_of_answers(original: Any) -> Any:
    """Questions without a file of candidates end in an IndexError; answers may be generated, and scored, without."""

    @functools.wraps(original)
    def __init__(self: Any, vis_processor: Any, text_processor: Any, vis_root: str, ann_paths: list[str]) -> None:
        # Questions; candidates; and the challenge's questions and annotations, two files that come together.
        files = [*ann_paths[:1], "", *ann_paths[1:]] if len(ann_paths) in (1, 3) else ann_paths
        original(self, vis_processor, text_processor, vis_root, files)

    return __init__
