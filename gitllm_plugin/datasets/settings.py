"""What the data sets of this package read of their nodes in a configuration."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gitllm_plugin.config import DefaultIs, OneOf, Rule, Says, node
from gitllm_plugin.config.model import missing_path
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.catalog import PRESETS
from gitllm_plugin.m3it.tree import find_sources

SPLIT_NAME = re.compile(r"train|(val|test)(_\w+)?")

_NO_FILES = """The data set m3it names no files.
Set datasets.m3it.build_info.annotations.<split>.storage (<split> is train, val or test) to a JSONL file,
a list of files or a mapping from configuration names to those, for example
  build_info: {annotations: {train: {storage: {coco: data/coco/train.jsonl}}}}"""

_NO_TREE = f"""The data set m3it_instruct needs a tree and a choice of it, for example
  build_info: {{root: ~/M3IT, preset: article_exp3}}   or   build_info: {{root: ~/M3IT, configs: [coco, vqa-v2]}}
The presets are {", ".join(PRESETS)}; `gitllm m3it list` shows what they are."""

_NO_SHARDS = """The data set m3it_wds names no shards.
Set datasets.m3it_wds.build_info.shards to the folder or URL that has their manifest.json, for example
  build_info: {shards: data/shards}"""

_OF_FILE = DefaultIs("of the type's file")
_Name = Annotated[str, Field(min_length=1)]
_NameList = Annotated[tuple[_Name, ...], Field(min_length=1)]
_Names = Annotated[_Name | _NameList, Says("a name or a list of names")]
_Limit = Annotated[int, Field(ge=1), Says("1 or more rows of each file")]
_Preset = Annotated[str, OneOf(PRESETS, "preset")]
_Split = Literal["train", "val", "test"]
_Splits = Annotated[
    _Split | Annotated[tuple[_Split, ...], Field(min_length=1)], Says("train, val, test, or a list of some")
]


def as_list(names: str | tuple[str, ...] | None) -> list[str]:
    """Make a list of one name or several; empty for none."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


@node("datasets")
class DataSetSettings:
    """What LAVIS reads of any data set's node."""

    type: str = "default"
    """Which of the data set's files of defaults."""

    data_type: str | None = None
    """LAVIS's word for what is downloaded."""

    vis_processor: Annotated[dict[Literal["train", "eval"], dict[str, Any]] | None, _OF_FILE] = None
    """The image processor of ``train`` and of ``eval``: its ``name``, and the keys of it."""

    text_processor: Annotated[dict[Literal["train", "eval"], dict[str, Any]] | None, _OF_FILE] = None
    """The text processor of ``train`` and of ``eval``: its ``name``, and the keys of it."""

    STREAMS = False
    """Not a key: whether the data has no end, so that a run says how many steps an epoch has."""

    @staticmethod
    def named_splits(values: Mapping[str, Any]) -> set[str] | None:
        """List the splits that a node has data for, with which the check compares those that ``run`` names.

        Args:
            values: the node's values that are right, by key; ``build_info`` is among them.

        Returns:
            None where the node does not say.
        """
        return None


def _chosen_splits(values: Mapping[str, Any]) -> set[str] | None:
    """List the ``splits`` of ``build_info``; None where they are those that will be found."""
    info = values.get("build_info")
    return set(as_list(info.splits)) if info is not None and info.splits else None


@node("datasets")
class TextsSettings(DataSetSettings):
    """What all data sets of M3IT read."""

    texts_per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """In training, up to so many texts about one image (or ``all``) share an item, and the image is encoded once."""

    eval_texts_per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 16
    """The same for val and test, where it changes nothing but the speed."""

    on_error: Annotated[Literal["stop", "skip"], Says("stop or skip")] = "stop"
    """At what cannot be read (an image, a shard or record of one) or does not fit into the model's context however
    short its question: stop, or skip it, counted and warned of."""


def _annotated_splits(values: Mapping[str, Any]) -> set[str] | None:
    info = values.get("build_info")
    return set(info.annotations or ()) if info else None


def _split_name(name: str) -> str:
    if not SPLIT_NAME.fullmatch(name):
        raise ValueError(
            f"has the split {name!r}; splits are train, val, test, and further sets to evaluate on named val_... and "
            "test_..."
        )
    return name


def _missing_files(storage: Any, _: bool) -> str | None:
    try:
        find_sources(storage)
    except DataError as error:
        return f".storage: {error}"
    return None


@node("datasets.m3it.build_info.annotations.SPLIT")
class M3ITSplit:
    """A split's files."""

    storage: Annotated[
        _Name | _NameList | Annotated[dict[str, _Name | _NameList], Field(min_length=1)],
        Says("a path, a list of paths, or a mapping from configuration names to those"),
    ]
    """A JSONL file, a list of files, or a mapping from configuration names to those; wildcards may be used."""

    limit: _Limit | None = None
    """Read only the first so many rows of each file, for a quick try."""

    # Only the check of a whole file looks for them: a builder finds them itself, and says as much.
    RULES = (Rule(("storage", "machine.files"), _missing_files),)


@node("datasets.m3it.build_info")
class M3ITInfo:
    """Which files."""

    annotations: dict[Annotated[str, AfterValidator(_split_name)], M3ITSplit | None] | None = None
    """``train``, ``val``, ``test``, and further sets to evaluate on named ``val_...`` and ``test_...``; null drops
    one."""

    RULES = (Rule(("annotations",), lambda splits: None if splits else _NO_FILES),)


@node("datasets.m3it")
class M3ITSettings(TextsSettings):
    """M3IT from files that are named."""

    allow_text_only: bool = False
    """Whether rows without an image are examples."""

    build_info: Annotated[M3ITInfo | None, _OF_FILE] = None
    """Which files."""

    RULES = (Rule(("build_info",), lambda info: _NO_FILES if info is None else None),)

    @staticmethod
    def named_splits(values: Mapping[str, Any]) -> set[str] | None:
        """List the splits with files; see :class:`DataSetSettings`."""
        return _annotated_splits(values)


def _tree_fault(root: str | None, preset: str | None, configs: Any) -> str | None:
    return _NO_TREE if not root or (preset is None) == (configs is None) else None


@node("datasets.m3it_instruct.build_info")
class M3ITInstructInfo:
    """Which tree, and what of it."""

    root: str | None = None
    """The folder that M3IT was downloaded to."""

    preset: _Preset | None = None
    """A mixture of ``gitllm m3it list``; or else ``configs``."""

    configs: _Names | None = None
    """Names, of the catalog or your own."""

    splits: _Splits | None = None
    """Of ``train``, ``val`` and ``test``; null for those that are there."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the instruction that each text gets."""

    allow_missing: bool = False
    """Whether files that are not there are no error, but named in the log."""

    limit: _Limit | None = None
    """Read only the first so many rows of each file, for a quick try."""

    index_folder: str | None = None
    """Where what was found in the files is kept, so that they are read whole once only; null for
    ``~/.cache/gitllm/m3it``."""

    RULES = (Rule(("root", "preset", "configs"), _tree_fault),)


@node("datasets.m3it_instruct")
class M3ITInstructSettings(TextsSettings):
    """M3IT from the files as they are downloaded."""

    allow_text_only: bool = False
    """Whether rows without an image are examples; where the catalog says that they belong, they always are."""

    build_info: Annotated[M3ITInstructInfo | None, _OF_FILE] = None
    """Which tree, and what of it."""

    RULES = (Rule(("build_info",), lambda info: _NO_TREE if info is None else None),)

    @staticmethod
    def named_splits(values: Mapping[str, Any]) -> set[str] | None:
        """List the splits that are chosen; see :class:`DataSetSettings`."""
        return _chosen_splits(values)


def _shards_faults(shards: str | None, preset: str | None, configs: Any) -> Iterable[str]:
    if not shards:
        yield _NO_SHARDS
    if preset is not None and configs is not None:
        yield " has a preset and configs; give one of them"


@node("datasets.m3it_wds.build_info")
class M3ITWdsInfo:
    """Which shards, and what of them."""

    shards: str | None = None
    """The folder or URL (https, s3, gs, ... of fsspec) that has the ``manifest.json`` of the shards."""

    preset: _Preset | None = None
    """A mixture of ``gitllm m3it list``; or else ``configs``; without both, all that there is."""

    configs: _Names | None = None
    """Names, with wildcards."""

    splits: _Splits | None = None
    """Of ``train``, ``val`` and ``test``; null for those that there are."""

    features: Annotated[bool | str, Says("a folder, or true or false")] | None = None
    """Features of the images in their place, as ``gitllm m3it features`` wrote them for a frozen image encoder: a
    folder, or true for that of the shards."""

    RULES = (Rule(("shards", "preset", "configs"), _shards_faults),)


@node("datasets.m3it_wds")
class M3ITWdsSettings(TextsSettings):
    """M3IT from shards, as a stream."""

    STREAMS = True

    weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """The share of each configuration in an epoch, such as ``{coco: 2, vqa-v2: 1}``; null: every item once."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Shares proportional to size ** (1 / temperature)."""

    items_per_epoch: Annotated[int, Field(ge=1)] | None = None
    """The length of an epoch over all processes; null for as many items as there are."""

    seed: Annotated[int, Field(ge=0)] = 42
    """Of the order of training and of random crops."""

    shuffle_shards: Annotated[int, Field(ge=1)] = 4
    """How many shards of each configuration are mixed at a time."""

    cache_dir: str | None = None
    """Where shards are copied to before they are read; null for no copy of local ones."""

    build_info: Annotated[M3ITWdsInfo | None, _OF_FILE] = None
    """Which shards, and what of them."""

    RULES = (
        Rule(("build_info",), lambda info: _NO_SHARDS if info is None else None),
        Rule(
            ("weights", "temperature"),
            lambda weights, temperature: (
                ": weights and temperature are given; weights say all, so leave temperature out"
                if weights is not None and temperature != 1.0
                else None
            ),
        ),
    )

    @staticmethod
    def named_splits(values: Mapping[str, Any]) -> set[str] | None:
        """List the splits that are chosen; see :class:`DataSetSettings`."""
        return _chosen_splits(values)


def _missing_dialogues(storage: str | tuple[str, ...], _: bool) -> Iterable[str]:
    for path in as_list(storage):
        # LAVIS looks for others below its cache, which is known only when it runs.
        if Path(path).is_absolute() and (fault := missing_path(".storage", path)):
            yield fault


@node("datasets.git_llm_visdial.build_info.annotations.SPLIT")
class VisDialSplit:
    """A split's files."""

    storage: Annotated[_Name | _NameList, Says("a path or a list of paths")]
    """A file or a list of files, of VisDial 1.0 or in LAVIS's form."""

    url: Any = None
    """Not read: nothing is downloaded."""

    RULES = (Rule(("storage", "machine.files"), _missing_dialogues),)


@node("datasets.git_llm_visdial.build_info.images")
class VisDialImages:
    """Where the images are."""

    storage: _Name = "images"
    """The folder of the images, at any depth."""


@node("datasets.git_llm_visdial.build_info")
class VisDialInfo:
    """Which files."""

    annotations: dict[Literal["train", "val", "test"], VisDialSplit | None] | None = None
    """``train``, ``val`` and ``test``, each optional."""

    images: VisDialImages | None = None
    """Where the images are."""


@node("datasets.git_llm_visdial")
class VisDialSettings(DataSetSettings):
    """VisDial: dialogues about images, a turn an example."""

    build_info: Annotated[VisDialInfo | None, _OF_FILE] = None
    """Which files."""

    @staticmethod
    def named_splits(values: Mapping[str, Any]) -> set[str] | None:
        """List the splits with files; see :class:`DataSetSettings`."""
        return _annotated_splits(values)
