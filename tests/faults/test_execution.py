"""Files of others are data: nothing in them is run, wherever they are read, and the sources have no way to run it."""

import ast
import dataclasses
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gitllm_plugin.errors import GitLLMError
from gitllm_plugin.m3it.shards.mixture import Item

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("gitllm_plugin", "examples", "benchmarks", "projects", "tests", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

# ---------------------------------------------------------------- what the sources call

FORBIDDEN = {
    "pickle.load": "unpickles",
    "pickle.loads": "unpickles",
    "pickle.Unpickler": "unpickles",
    "joblib.load": "unpickles",
    "dill.load": "unpickles",
    "marshal.loads": "reads code",
    "shelve.open": "unpickles",
    "pandas.read_pickle": "unpickles",
    "yaml.load": "makes any object",
    "yaml.load_all": "makes any object",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes many objects",
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes code of text",
    "runpy.run_path": "runs a file",
    "importlib.util.spec_from_file_location": "imports a file",
}
ALLOWED = {
    "gitllm_plugin/host/launch.py": {"runpy.run_path"},  # `gitllm run`: the script that the user names
}
# In tests: what the test itself has pickled, code of the documentation, and scripts of this checkout.
IN_TESTS = {"pickle.loads", "exec", "compile", "runpy.run_path", "importlib.util.spec_from_file_location"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls of a file, by the dotted names of what is called, whatever it was imported as."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                name.asname or name.name.partition(".")[0]: name.name if name.asname else name.name.partition(".")[0]
                for name in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            dotted = ast.unparse(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else ""
            first, dot, rest = dotted.partition(".")
            yield known.get(first, first) + dot + rest, node


def keywords(call: ast.Call) -> dict[str, str]:
    return {word.arg or "**": ast.unparse(word.value) for word in call.keywords}


def faults_of(path: Path) -> list[str]:
    """Ways to run what is read, in a file of Python."""
    place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    allowed = ALLOWED.get(place, set()) | (IN_TESTS if place.startswith("tests/") else set())
    found = []
    for name, call in calls(path):
        given = keywords(call)
        reason = None if name in allowed else FORBIDDEN.get(name)
        if name == "torch.load" and given.get("weights_only") != "True":
            reason = "without weights_only=True"
        if name == "numpy.load" and given.get("allow_pickle", "False") != "False":
            reason = "with pickled objects"
        if given.get("shell", "False") != "False":
            reason = "a shell"
        if given.get("trust_remote_code") == "True" and not place.startswith("tests/"):
            reason = "code of others"
        if reason:
            found.append(f"{place}:{call.lineno}: {name}: {reason}")
    return found


def test_no_source_runs_what_it_reads():
    assert len(SOURCES) > 200
    assert [fault for path in SOURCES for fault in faults_of(path)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle as p\np.load(open('x', 'rb'))",
        "from pickle import loads\nloads(b'')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load(open('x'), Loader=yaml.Loader)",
        "from yaml import unsafe_load as read\nread('x')",
        "import subprocess\nsubprocess.run('ls ' + name, shell=True)",
        "import os\nos.system('ls')",
        "eval(input())",
        "exec(open('x').read())",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_search_finds_each_way(tmp_path, source):
    (tmp_path / "module.py").write_text(source)
    assert len(faults_of(tmp_path / "module.py")) == 1


# ---------------------------------------------------------------- what files hold


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A path that is there as soon as something was run."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "a file was run"


def in_a_zip(content: bytes) -> bytes:
    """As torch writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def array_of_objects(value: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([value], dtype=object), allow_pickle=True)
    return file.getvalue()


def arrays_of_objects(value: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, facts=np.array([value], dtype=object), keys=np.array([value], dtype=object))
    return file.getvalue()


def torch_file(value: object, new: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"model": value}, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


WITH_OBJECTS = {"allow_pickle": True}  # this test's own files, which are to run

FORMS = {
    "protocol 0": lambda value: pickle.dumps(value, 0),
    "protocol 2": lambda value: pickle.dumps(value, 2),
    "protocol 5": lambda value: pickle.dumps({"model": value, "config": {}}, 5),
    "in a zip": lambda value: in_a_zip(pickle.dumps(value, 2)),
    "torch's file": lambda value: torch_file(value, new=True),
    "torch's old file": lambda value: torch_file(value, new=False),
    "npy": array_of_objects,
    "npz": arrays_of_objects,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_payload_would_run(form, tmp_path):
    """Else the tests below would find nothing, whatever is read how."""
    content = io.BytesIO(FORMS[form](Payload(tmp_path / "ran")))
    if form.startswith("np"):
        loaded = np.load(content, **WITH_OBJECTS)
        if form == "npz":
            loaded["facts"]
    elif form == "in a zip" or form.startswith("torch"):
        torch.serialization.load(content, weights_only=False)
    else:
        pickle.loads(content.getvalue())
    assert (tmp_path / "ran").exists()


def read_checkpoint(path: Path) -> None:
    from gitllm_plugin.common.weights import read_checkpoint

    read_checkpoint(path)


def use_as_run(path: Path) -> None:
    from gitllm_plugin.host.export import export_run

    model = "{arch: git_llm, language_model: tiny:opt, image_encoder: tiny:clip, trainable: proj}"
    (path.parent / "config.yaml").write_text(f"model: {model}\nrun: {{}}\ndatasets: {{}}\n")
    export_run(path, path.parent / "exported")


def convert(path: Path) -> None:
    from gitllm_plugin.modeling.published import convert_published

    folder = path.parent / "published"
    folder.mkdir()
    for name in ("pytorch_model.bin", "adapter_model.bin", "projection.pth"):
        (folder / name).write_bytes(path.read_bytes())
    for name in ("config.json", "adapter_config.json"):
        (folder / name).write_text('{"model_type": "git_llama"}')
    convert_published(folder, path.parent / "converted")


def with_weights(path: Path) -> Path:
    """A model's folder whose weights are the file."""
    from tests.tiny_folder import write_tiny_folder

    folder = write_tiny_folder(path.parent / "tiny")
    for weights in folder.rglob("model.safetensors"):
        weights.with_name("pytorch_model.bin").write_bytes(path.read_bytes())
        weights.unlink()
    return folder


def load_weights(path: Path) -> None:
    from gitllm_plugin.modeling import build_git_llm

    folder = with_weights(path)
    for file in (folder / "tokenizer").glob("*"):
        file.rename(folder / "language_model" / file.name)
    build_git_llm(str(folder / "language_model"), "tiny:clip")


def load_encoder(path: Path) -> None:
    from gitllm_plugin.modeling import build_git_llm

    build_git_llm("tiny:opt", str(with_weights(path) / "image_encoder"))


def open_model(path: Path) -> None:
    from gitllm_plugin.inference.pipeline import Pipeline

    Pipeline.from_pretrained(with_weights(path))


def read_picture(path: Path) -> None:
    from gitllm_plugin.m3it.pictures import open_picture

    open_picture(path)


def read_table(name: str):
    def read(path: Path) -> None:
        from gitllm_plugin.m3it.examples import JsonlExamples
        from gitllm_plugin.m3it.tree import find_sources

        table = path.parent / name
        table.parent.mkdir(exist_ok=True)
        table.write_bytes(path.read_bytes())
        if table.parent != path.parent:  # a folder of the library `datasets`
            state = json.dumps({"_data_files": [{"filename": table.name}]})
            (table.parent / "state.json").write_text(state)
            table.with_name("dataset_info.json").write_bytes(path.read_bytes())
            table = table.parent
        JsonlExamples(find_sources(str(table)))

    return read


def read_shards(path: Path) -> None:
    from gitllm_plugin.m3it.shards.folder import ShardFolder
    from gitllm_plugin.m3it.shards.format import MANIFEST_NAME

    (path.parent / "shards").mkdir()
    (path.parent / "shards" / MANIFEST_NAME).write_bytes(path.read_bytes())
    ShardFolder(str(path.parent / "shards")).read_manifest()


def shards_with(path: Path, image: bytes | None = None) -> tuple[Path, Item]:
    """A folder of shards with one record, and the record's place."""
    from gitllm_plugin.m3it.shards.mixture import ItemTable
    from tests.m3it_shards import make_groups, write_shards

    [group] = make_groups(path.parent / "one.jsonl", "a", "train", rows=1)
    if image is not None:
        group = dataclasses.replace(group, images=(image,))
    folder = path.parent / "shards"
    return folder, ItemTable(write_shards(folder, [group]), ["a"], "train", 16)[0]


def read_shard(path: Path) -> None:
    from gitllm_plugin.m3it.shards.folder import ShardFolder

    folder, item = shards_with(path)
    (folder / item.shard.file).write_bytes(path.read_bytes().ljust(item.shard.bytes, b"\0"))
    ShardFolder(str(folder)).read(item)


def read_picture_of_shard(path: Path) -> None:
    from gitllm_plugin.m3it.pictures import open_picture
    from gitllm_plugin.m3it.shards.folder import ShardFolder

    folder, item = shards_with(path, image=path.read_bytes())
    group = ShardFolder(str(folder)).read(item)
    assert group.images == (path.read_bytes(),)
    open_picture(group.images[0])


def read_texts_of_shard(path: Path) -> None:
    """Its JSON, which stands last, is the file."""
    from gitllm_plugin.m3it.shards.folder import ShardFolder
    from gitllm_plugin.m3it.shards.format import add_to_tar

    folder, item = shards_with(path)
    with tarfile.open(folder / item.shard.file, "w") as tar:
        blocks = add_to_tar(tar, [("a-train-00000000.json", path.read_bytes())])
    ShardFolder(str(folder)).read(dataclasses.replace(item, size=blocks * tarfile.BLOCKSIZE))


def read_features(part: str):
    """Of the features' bytes, their description and what says who made them, one is the file."""

    def read(path: Path) -> None:
        from gitllm_plugin.m3it.shards.features import FeatureReader, Maker, write_features

        folder, item = shards_with(path)
        maker = Maker("an encoder", "a processor")
        width = -(-path.stat().st_size // 2)
        write_features(folder, item.shard, maker, "float32", [np.ones((1, 1, width), np.uint16)])
        [written] = folder.rglob(part)
        written.write_bytes(path.read_bytes().ljust(2 * width, b"\0"))
        FeatureReader(folder, [item.shard], maker.image_processor).read(item)

    return read


READERS = {
    "a checkpoint": read_checkpoint,
    "a run's checkpoint": use_as_run,
    "a published checkpoint": convert,
    "a language model's weights": load_weights,
    "an image encoder's weights": load_encoder,
    "an exported model's weights": open_model,
    "a picture": read_picture,
    "rows": read_table("rows.jsonl"),
    "rows, parquet": read_table("rows.parquet"),
    "rows, Arrow": read_table("saved/data-00000.arrow"),
    "shards": read_shards,
    "a shard": read_shard,
    "a shard's picture": read_picture_of_shard,
    "a shard's texts": read_texts_of_shard,
    "features": read_features("*.features"),
    "features' description": read_features("*.features.json"),
    "features' maker": read_features("maker.json"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_run_wherever_it_is_read(reader, form, tmp_path, mark):
    path = tmp_path / "checkpoint_latest.pth"
    path.write_bytes(FORMS[form](Payload(mark)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(GitLLMError):
            READERS[reader](path)


@pytest.mark.parametrize("kind", ["rows.parquet", "saved/data-00000.arrow"])
@pytest.mark.parametrize("name", ["arrow.py_extension_type", "datasets.features.Array2DExtensionType", "mine"])
def test_types_of_tables_are_no_code(kind, name, tmp_path, mark):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    own = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Payload(mark))}
    schema = pa.schema(
        [pa.field("inputs", pa.binary(), metadata=own)], metadata={"huggingface": pickle.dumps(Payload(mark))}
    )
    table = pa.table([pa.array([b"x"])], schema=schema)
    path = tmp_path / "written"
    if kind.endswith("parquet"):
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(table)
    with pytest.raises(GitLLMError):
        read_table(kind)(path)


YAMLS = [
    "!!python/object/apply:os.mkdir ['{mark}']",
    "!!python/object/new:os.mkdir ['{mark}']",
    "!!python/object/apply:subprocess.check_call [['mkdir', '{mark}']]",
    "!!python/name:os.mkdir",
    "!!python/module:antigravity",
    "!!python/object/new:type [a, [], {{run: !!python/name:os.mkdir }}]",
]


@pytest.mark.parametrize("text", YAMLS)
@pytest.mark.parametrize("where", ["model: {}", "run: {{x: {}}}", "{}"])
def test_yaml_makes_no_objects(text, where, tmp_path, mark, capsys):
    from gitllm_plugin.cli.main import main

    path = tmp_path / "config.yaml"
    path.write_text(where.format(text.format(mark=mark)))
    for command in ("train", "evaluate"):
        assert main([command, "--cfg-path", str(path)]) == 2
    assert main(["experiment", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
