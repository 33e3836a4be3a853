"""Every command with paths that are missing, empty, of another kind, unreadable or not writable: a sentence is told.

Each argument of every command that is a path is given each of these, all others being right. The command has to end
with 1 or 2 and to say which argument it is about: by its name, or by the path.
"""

import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from tests.cli.test_shown_tables import leaves
from tests.faults.commands import Inputs
from tests.tiny_folder import write_tiny_folder

GARBAGE = random.Random(0).randbytes(3000)


def _link(place: Path, target: str) -> Path:
    place.symlink_to(target)
    return place


def _written(place: Path, content: bytes) -> Path:
    place.write_bytes(content)
    return place


def _folder_of(place: Path, **files: bytes) -> Path:
    place.mkdir()
    for name, content in files.items():
        (place / name.replace("__", ".")).write_bytes(content)
    return place


Make = Callable[[Path], Path]

MISSING: dict[str, Make] = {
    "missing": lambda place: place,
    "below a file": lambda place: _written(place.with_name("plain"), b"x") / place.name,
    "link to nowhere": lambda place: _link(place, "nowhere"),
    "link to itself": lambda place: _link(place, place.name),
    "name too long": lambda place: place.with_name(f"{'n' * 300}{place.suffix}"),
}
FILE = MISSING | {
    "empty file": lambda place: _written(place, b""),
    "garbage": lambda place: _written(place, GARBAGE),
    "blanks": lambda place: _written(place, b" \n\t\n "),
    "folder": lambda place: _folder_of(place),
    "unreadable": lambda place: _link(place, "/proc/self/mem"),
}
"""In the place of a file that is read."""

MODEL = FILE | {
    "folder of garbage": lambda place: _folder_of(place, git_llm__json=GARBAGE, config__json=GARBAGE),
    "folder of another": lambda place: _folder_of(place, config__json=b'{"model_type": "llama"}'),
    "empty description": lambda place: _folder_of(place, git_llm__json=b"{}", llama_cpp__json=b"{}"),
    "list as description": lambda place: _folder_of(place, git_llm__json=b"[1]"),
    "run of garbage": lambda place: _folder_of(place, config__yaml=GARBAGE, checkpoint_latest__pth=GARBAGE),
    "run of nothing": lambda place: _folder_of(place, config__yaml=b"", checkpoint_latest__pth=b""),
}
"""In the place of a model or run."""

TREE = FILE | {"folder of garbage": lambda place: _folder_of(place, a__jsonl=GARBAGE, b__parquet=GARBAGE)}
"""In the place of a folder that is read."""

TARGET: dict[str, Make] = {
    "below a file": lambda place: _written(place.with_name("plain"), b"x") / place.name,
    "name too long": lambda place: place.with_name(f"{'n' * 300}{place.suffix}"),
    "read-only": lambda place: Path("/proc/gitllm") / place.name,
}
FOLDER_TO_WRITE = TARGET | {"a file": lambda place: _written(place, b"x")}
FILE_TO_WRITE = TARGET | {"a folder": lambda place: _folder_of(place)}


@dataclass(frozen=True)
class PathOf:
    """An argument of a command that is a path.

    Attributes:
        command, argument: their names.
        bad: what is put there.
        argv: what follows ``gitllm``, of good inputs and the path.
        name: of the path.
        fine: of ``bad`` what the command takes.
    """

    command: str
    argument: str
    bad: dict[str, Make]
    argv: Callable[["Good", str], list[str]]
    name: str = "given"
    fine: frozenset[str] = frozenset()


class Good(Inputs):
    """Inputs that are right, and a model that was not trained."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.tiny = write_tiny_folder(folder / "tiny")
        self.picture = folder / "good.png"
        Image.new("RGB", (40, 30), "teal").save(self.picture)
        self.rows = folder / "rows.jsonl"
        self.rows.write_text('{"image": "good.png", "question": "what?"}\n')
        self.csv = folder / "mine.csv"
        self.csv.write_text("image,answer\ngood.png,teal\n")
        self.coco = folder / "coco.json"
        self.coco.write_text(
            '{"images": [{"id": 1, "file_name": "good.png"}], "annotations": [{"image_id": 1, "caption": "teal"}]}'
        )
        self.chats = folder / "chats.json"
        said = '[{"from": "human", "value": "what?"}, {"from": "gpt", "value": "teal"}]'
        self.chats.write_text(f'[{{"image": "good.png", "conversations": {said}}}]')
        self.out = folder / "out"


def _options(path: str, key: str) -> list[str]:
    return ["--options", f"{key}={path}"]


CONVERTERS = [
    ("from-csv", "csv", FILE, ["given.csv", "given.tsv", "given.json", "given.jsonl", "given.parquet", "given"]),
    ("from-coco", "coco", FILE, ["given.json"]),
    ("from-messages", "chats", FILE, ["given.json", "given.jsonl"]),
    ("from-dataset", "parquet", TREE, ["given.parquet", "given"]),
]
"""Command, the good input that it reads, what is wrong with a path to one, and the names that such a path has."""


def _of_converter(command: str, read: str, bad: dict[str, Make], names: list[str]) -> Iterator[PathOf]:
    """Give the paths of a command that takes other people's rows: what it reads, writes, and has its pictures in."""
    start = ["m3it", command]
    for name in names:
        yield PathOf(f"m3it {command}", "table", bad, lambda good, path: [*start, path, str(good.out)], name)
    yield PathOf(f"m3it {command}", "out", FOLDER_TO_WRITE, lambda good, path: [*start, str(getattr(good, read)), path])
    if command != "from-dataset":  # its pictures are in it
        yield PathOf(
            f"m3it {command}",
            "--images",
            FILE,
            lambda good, path: [*start, str(getattr(good, read)), str(good.out), "--images", path],
        )


_ASK = ("--max-new-tokens", "2")
PATHS = [
    PathOf("train", "cfg_path", FILE, lambda good, path: ["train", path], "given.yaml"),
    PathOf("evaluate", "run", MODEL, lambda good, path: ["evaluate", path]),
    PathOf("evaluate", "--cfg-path", FILE, lambda good, path: ["evaluate", "--cfg-path", path], "given.yaml"),
    PathOf("experiment", "plan", FILE, lambda good, path: ["experiment", path], "given.yaml"),
    PathOf("plot", "runs", MODEL, lambda good, path: ["plot", path, "--output", str(good.out)]),
    PathOf("m3it check", "root", TREE, lambda good, path: ["m3it", "check", path, "--workers", "1"]),
    PathOf(
        "m3it check",
        "--report",
        FILE_TO_WRITE,
        lambda good, path: ["m3it", "check", str(good.tree), "--configs", "birds", "--report", path],
        "given.json",
    ),
    PathOf(
        "m3it check",
        "--cfg-path",
        FILE,
        lambda good, path: ["m3it", "check", str(good.tree), "--configs", "birds", "--cfg-path", path],
        "given.yaml",
    ),
    PathOf(
        "m3it shard", "root", TREE, lambda good, path: ["m3it", "shard", path, str(good.out / "a"), "--workers", "1"]
    ),
    PathOf(
        "m3it shard",
        "out",
        FOLDER_TO_WRITE,
        lambda good, path: [
            *("m3it", "shard", str(good.tree), path, "--configs", "birds", "--splits", "train", "--workers", "1")
        ],
    ),
    PathOf("m3it merge", "out", TREE, lambda good, path: ["m3it", "merge", path]),
    PathOf("m3it features", "cfg_path", FILE, lambda good, path: ["m3it", "features", path], "given.yaml"),
    PathOf(
        "m3it features",
        "--options",
        FOLDER_TO_WRITE,
        lambda good, path: [
            *("m3it", "features", str(good.sharded)),
            *_options(path, "datasets.m3it_wds.build_info.features"),
        ],
    ),
    *(path for converter in CONVERTERS for path in _of_converter(*converter)),
    PathOf("parameters", "cfg_path", MODEL, lambda good, path: ["parameters", path]),
    PathOf("parameters", "cfg_path", FILE, lambda good, path: ["parameters", path], "given.yaml"),
    PathOf("export", "run", MODEL, lambda good, path: ["export", path, str(good.out / "export")]),
    PathOf("export", "target", FOLDER_TO_WRITE, lambda good, path: ["export", str(good.run), path]),
    PathOf("merge", "source", MODEL, lambda good, path: ["merge", path, str(good.out / "merged")]),
    PathOf("merge", "target", FOLDER_TO_WRITE, lambda good, path: ["merge", str(good.model), path]),
    PathOf(
        "convert-checkpoint",
        "source",
        MODEL,
        lambda good, path: ["convert-checkpoint", path, str(good.out / "converted")],
    ),
    PathOf(
        "convert-checkpoint",
        "target",
        FOLDER_TO_WRITE,
        lambda good, path: ["convert-checkpoint", str(good.published), path],
    ),
    *(
        PathOf(
            command,
            "picture",
            FILE,
            lambda good, path, command=command: [
                *(command, path, *(["what?"] if command == "ask" else []), "--model", str(good.tiny)),
                *_ASK,
            ],
            "given.png",
        )
        for command in ("ask", "chat")
    ),
    *(
        PathOf(
            command,
            "--model",
            MODEL,
            lambda good, path, command=command: [
                *(command, str(good.picture), *(["what?"] if command == "ask" else []), "--model", path),
                *_ASK,
            ],
        )
        for command in ("ask", "chat", "caption")
    ),
    PathOf(
        "caption",
        "paths",
        FILE,
        lambda good, path: ["caption", path, "--model", str(good.tiny), *_ASK],
        "given.png",
    ),
    PathOf(
        "caption",
        "--out",
        FILE_TO_WRITE,
        lambda good, path: ["caption", str(good.picture), "--out", path, "--model", str(good.tiny), *_ASK],
        "given.csv",
    ),
    PathOf(
        "predict",
        "--input",
        FILE,
        lambda good, path: [
            *("predict", "--input", path, "--output", str(good.out.with_suffix(".jsonl")), "--model", str(good.tiny)),
            *_ASK,
        ],
        "given.jsonl",
        fine=frozenset({"empty file", "blanks", "garbage"}),  # each line is told
    ),
    PathOf(
        "predict",
        "--output",
        FILE_TO_WRITE,
        lambda good, path: [
            *("predict", "--input", str(good.rows), "--output", path, "--model", str(good.tiny), *_ASK)
        ],
        "given.jsonl",
    ),
    PathOf(
        "predict",
        "--model",
        MODEL,
        lambda good, path: ["predict", "--input", str(good.rows), "--output", "-", "--model", path, *_ASK],
    ),
    *(
        PathOf(command, "--model", MODEL, lambda good, path, command=command: [command, "--port", "0", "--model", path])
        for command in ("serve", "demo")
    ),
    PathOf(
        "serve",
        "--files",
        FILE,
        lambda good, path: ["serve", "--port", "0", "--model", str(good.tiny), "--files", path],
        fine=frozenset({"folder"}),
    ),
    PathOf("conform", "folder", MODEL, lambda good, path: ["conform", "torch", path]),
    PathOf(
        "conform",
        "--reference",
        MODEL,
        lambda good, path: ["conform", "transformers", str(good.tiny), "--reference", path],
    ),
    PathOf("words", "image", FILE, lambda good, path: ["words", path, "--model", str(good.tiny)], "given.png"),
    PathOf("words", "--model", MODEL, lambda good, path: ["words", str(good.picture), "--model", path]),
    *(
        PathOf(
            "words",
            "--images",
            FILE,
            lambda good, path: ["words", "--images", path, "--model", str(good.tiny), "--out", str(good.out)],
            name,
        )
        for name in ("given.jsonl", "given")
    ),
    PathOf(
        "words",
        "--out",
        FOLDER_TO_WRITE,
        lambda good, path: ["words", str(good.picture), "--model", str(good.tiny), "--out", path],
    ),
    PathOf(
        "run", "script", FILE, lambda good, path: ["run", path], "given.py", fine=frozenset({"empty file", "blanks"})
    ),
]
NO_PATHS = {"keys", "m3it list", "hook", "doctor", "completion"}
FAST = {"missing", "garbage", "a file", "a folder"}
"""The others are tested with the slow ones."""
CASES = [
    pytest.param(
        each,
        kind,
        marks=[] if kind in FAST else pytest.mark.slow,
        id=f"{each.command} {each.argument} {each.name}: {kind}".replace(" ", "-"),
    )
    for each in PATHS
    for kind in each.bad
    if kind not in each.fine
]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return Good(tmp_path_factory.mktemp("good"))


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """Servers are not served, and nobody types."""
    for name in ("gitllm_plugin.web.server.serve", "gitllm_plugin.serving.server.serve"):
        monkeypatch.setattr(name, lambda *given: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def end_of(argv, capfd):
    capfd.readouterr()
    try:
        status = main(argv)
    except SystemExit as ended:  # argparse's own
        status = ended.code
    printed = capfd.readouterr()
    return status, printed.out + printed.err


@pytest.mark.parametrize(("case", "kind"), CASES)
def test_it_is_told_in_a_sentence(case, kind, good, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = case.bad[kind](tmp_path / case.name)
    status, printed = end_of(case.argv(good, str(path)), capfd)
    assert status in (1, 2), printed
    assert "Traceback" not in printed
    # Of a long name the beginning is enough, and of a path the part that is at fault.
    names = (path.name[:100], case.argument, *([path.parent.name] if kind in ("read-only", "below a file") else []))
    assert any(name in printed for name in names), printed


def test_all_commands_are_here():
    assert {each.command for each in PATHS} | NO_PATHS == {name for name, _ in leaves()}


@pytest.mark.parametrize("server", ["demo", "serve"])
@pytest.mark.parametrize("port", ["80000", "65536", "-1", "1.5", "http", ""])
def test_a_port_that_cannot_be(server, port, good, capfd):
    status, printed = end_of([server, "--model", str(good.tiny), f"--port={port}"], capfd)
    assert status == 2 and "Traceback" not in printed and "--port" in printed


@pytest.mark.parametrize("server", ["demo", "serve"])
def test_a_port_that_is_taken(server, good, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, printed = end_of([server, "--model", str(good.tiny), f"--port={taken.getsockname()[1]}"], capfd)
    assert status == 2 and "Traceback" not in printed and "--port" in printed


SHIPPED = sorted(
    [
        *Path("projects/git_llm/eval").glob("*.yaml"),
        *(Path("projects/git_llm/train", f"{name}.yaml") for name in ("exp1_proj", "exp3_llama2_7b", "pretrain_cc3m")),
    ]
)
GETS = ("curl", "hf download", "gitllm m3it", "make demo", "https://", "git clone", "no address is known")
"""What is said of how data comes, by the beginning of a command or an address."""


@pytest.mark.slow
@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.stem)
def test_a_configuration_without_its_data_says_what_to_get_and_where_it_goes(
    config, good, tmp_path, capfd, monkeypatch
):
    home = tmp_path / "home"
    home.mkdir()
    config = config.absolute()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "model").symlink_to(good.tiny)
    status, printed = end_of(["evaluate" if config.parent.name == "eval" else "train", str(config)], capfd)
    assert status == 2 and "Traceback" not in printed, printed
    assert str(home) in printed and any(gets in printed for gets in GETS), printed
    assert not [path for path in home.rglob("*") if path.is_file()], "something was downloaded"
