"""The commands of ``gitllm`` that write files, each declared once: its input, its words, and what it writes.

From this list come the tests of full and read-only disks and those of kills. Whatever writes is listed here, and what
writes nothing in ``WRITES_NOTHING``; a test compares both with the command line.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import load_file, save

from gitllm_plugin.cli.command import Command
from gitllm_plugin.cli.main import COMMANDS
from tests.faults.children import Child, Orders
from tests.m3it_files import make_square, write_m3it_jsonl
from tests.m3it_shards import make_groups, write_shards
from tests.small_run import TINY_LORA, write_small_run

WRITES_NOTHING = {
    "m3it list",
    "keys",
    "parameters",
    "ask",
    "chat",
    "conform",
    "demo",
    "serve",
    "run",
    "doctor",
    "completion",
}
"""``demo`` keeps its examples in a temporary folder, and ``run`` starts a script that writes what it writes."""

Files = dict[str, bytes]
"""Contents by name."""


class Inputs:
    """What the commands read, each made when it is first asked for.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def config(self) -> Path:
        """Of a training of three steps, each saved, with a validation and a test."""
        folder = self._make("training")
        return write_small_run(folder, TINY_LORA, max_epoch=1, batch_size_train=8, save_every_steps=1, keep_last=2)

    @cached_property
    def run(self) -> Path:
        """A run's folder."""
        self._command("train", "--cfg-path", str(self.config))
        return (self.config.parent / "output" / "latest").resolve()

    @cached_property
    def model(self) -> Path:
        """A model's folder, with an adapter."""
        self._command("export", str(self.run), str(self.folder / "model"))
        return self.folder / "model"

    @cached_property
    def published(self) -> Path:
        """A checkpoint of the published implementation."""
        from tests.modeling.test_convert import make_source

        make_source(self.folder / "published", "opt_video", "safetensors")
        return self.folder / "published"

    @cached_property
    def tree(self) -> Path:
        """Two configurations of the uniform form, with a row that is broken."""
        for name, rows in (("birds", 30), ("fish", 20)):
            folder = self.folder / "tree" / name
            for seed, split in enumerate(("train", "val")):
                write_m3it_jsonl(folder / f"{split}.jsonl", rows, config=name, texts_per_image=2, seed=seed)
        with open(self.folder / "tree" / "fish" / "val.jsonl", "a") as file:
            file.write("{broken\n")
        return self.folder / "tree"

    @cached_property
    def parts(self) -> Path:
        """Shards of the tree, all parts made and not merged."""
        for part in (1, 2):
            self._command(*_shard(self, self.folder / "parts"), "--part", f"{part}/2")
        return self.folder / "parts"

    @cached_property
    def sharded(self) -> Path:
        """A configuration whose images can be encoded."""
        folder = self._make("sharded")
        groups = make_groups(folder / "a.jsonl", "a", "train", rows=24, texts_per_image=2)
        groups += make_groups(folder / "b.jsonl", "b", "train", rows=4, seed=1, images_per_row=2)
        write_shards(folder / "shards", groups)
        size = {"image_size": 32}
        model = {"arch": "git_llm", "model_type": "tiny_opt", "image_encoder": "tiny:clip", "max_images": 2}
        data = {"build_info": {"shards": str(folder / "shards")}, "vis_processor": {"train": size, "eval": size}}
        run = {"task": "m3it", "runner": "git_llm", "device": "cpu", "train_splits": ["train"], "valid_splits": []}
        config = {"model": model, "datasets": {"m3it_wds": {**data, "texts_per_image": "all"}}}
        config["run"] = {**run, "init_lr": 0.01, "max_iters": 2, "max_epoch": 1, "batch_size_train": 2}
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        return folder / "config.yaml"

    @cached_property
    def table(self) -> Path:
        """Pictures with questions and answers."""
        import random

        folder = self._make("table")
        lines = ["image,question,answer"]
        for number in range(40):
            make_square("red", random.Random(number)).save(folder / f"{number}.png")
            lines.append(f"{number}.png,what is it?,number {number}")
        (folder / "mine.csv").write_text("\n".join(lines) + "\n")
        return folder / "mine.csv"

    @cached_property
    def conversations(self) -> Path:
        """Conversations about the table's pictures."""
        said = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "a square"}]
        rows = [{"image": f"{number}.png", "conversations": said * 2} for number in range(40)]
        path = self.table.with_name("chats.json")
        path.write_text(json.dumps(rows))
        return path

    @cached_property
    def captions(self) -> Path:
        """Captions of the table's pictures in COCO's form, two of each."""
        images = [{"id": number, "file_name": f"{number}.png"} for number in range(40)]
        said = [{"image_id": number % 40, "caption": f"square {number}"} for number in range(80)]
        path = self.table.with_name("captions.json")
        path.write_text(json.dumps({"images": images, "annotations": said}))
        return path

    @cached_property
    def parquet(self) -> Path:
        """Conversations with their pictures in them, as the hub has them."""
        import pyarrow
        import pyarrow.parquet as parquet

        pictures = [self.table.with_name(f"{number}.png").read_bytes() for number in range(40)]
        rows = [{"images": [{"bytes": p}], "texts": [{"user": "what?", "assistant": "a square"}]} for p in pictures]
        path = self._make("set") / "train.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    @cached_property
    def questions(self) -> Path:
        """Rows about the table's pictures."""
        rows = [{"image": f"{number}.png", "question": f"what is in picture {number}?"} for number in range(14)]
        path = self.table.with_name("questions.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def _make(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def _command(self, *argv: str) -> None:
        ended = Child(argv, Orders(self.folder)).end()
        assert ended.status == 0, ended.printed


def all_files(out: Path) -> Files:
    """Everything below a folder but locks, which stay by design."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def training_files(out: Path) -> Files:
    """What a run computed, without times of day and pace; each line of its records once and in order."""
    run = out / "latest"
    # The tensors and not the file, whose notes have an order that is drawn.
    weights = {path.name: load_file(path) for path in run.glob("*.safetensors")}
    found = {f"{file} {name}": save({"it": value}) for file, read in weights.items() for name, value in read.items()}
    found |= {path.name: path.read_bytes() for path in [*run.glob("result/*.jsonl"), *run.glob("*_metrics.json")]}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["steps"] = json.dumps([[entry["epoch"], entry["step"], entry["loss"]] for entry in steps]).encode()
    found["evaluations"] = (run / "evaluations.jsonl").read_bytes()
    return found


def evaluation_files(out: Path) -> Files:
    """What the last evaluation wrote, without LAVIS's log and the configuration, in which OUT is named."""
    latest = out / "latest_evaluation"
    paths = [*latest.glob("result/*"), *latest.glob("*_metrics.json"), *latest.glob("*_results.md")]
    return {path.name: path.read_bytes() for path in [*paths, *latest.glob("*.html")]}


def dry_run_files(out: Path) -> Files:
    """The figure of the last one."""
    return {path.name: path.read_bytes() for path in max(out.glob("dry_run/[0-9]*")).glob("*.png")}


def experiment_files(out: Path) -> Files:
    """The runs and what is said of them, without the minutes they took and where they lie."""
    results = json.loads((out / "results.json").read_text())
    for result in results:
        del result["minutes"], result["folder"]
    found = {"results": json.dumps(results).encode()}
    found |= {path.name: path.read_bytes() for path in out.glob("*.png")}
    page = re.sub(r" [\d.]+ \|$", " |", (out / "README.md").read_text(), flags=re.MULTILINE)
    return {**found, "page": page.replace(str(out), "OUT").encode(), **training_files(out / "proj")}


def nothing(inputs: Inputs, out: Path) -> None:
    """Prepares nothing."""


@dataclass(frozen=True)
class Writing:
    """A command that writes.

    Attributes:
        name: as it is typed.
        argv: what follows ``gitllm``, with which inputs and which folder to write below.
        outputs: of that folder, what is the same each time.
        prepare: puts into the folder what the command finds there.
        replaces: the command writes over files that are there, else it goes on with them, or refuses to.
        grows: matches names of outputs that are whole, and not as at the end, while the command works.
        done: what it says, instead of succeeding, where a killed one was done already.
        status: how it ends when all is well.
        before: what is done in its process before, with the folder.
        is_slow: it takes seconds: tested with the slow ones.
    """

    name: str
    argv: Callable[[Inputs, Path], list[str]]
    outputs: Callable[[Path], Files] = all_files
    prepare: Callable[[Inputs, Path], None] = nothing
    replaces: bool = False
    grows: str = "(?!)"
    done: str = "(?!)"
    status: int = 0
    before: Callable[[Path], object] | None = None
    is_slow: bool = False

    @property
    def id(self) -> str:
        """For names of tests."""
        return self.name.replace(" ", "_")


def _shard(inputs: Inputs, out: Path) -> list[str]:
    size = ["--max-size", "20KB", "--workers", "1", "--splits", "train", "val"]
    return ["m3it", "shard", str(inputs.tree), str(out), "--configs", "birds", "fish", *size]


def _shard_by_two(inputs: Inputs, out: Path) -> list[str]:
    return [word if word != "1" else "2" for word in _shard(inputs, out)]


def _check(inputs: Inputs, out: Path) -> list[str]:
    tree = ["--configs", "birds", "fish", "--splits", "train", "val", "--workers", "1"]
    return ["m3it", "check", str(inputs.tree), *tree, "--report", str(out / "report.json")]


def _experiment(inputs: Inputs, out: Path) -> list[str]:
    plan = {"title": "One run", "output_dir": str(out), "runs": [{"name": "proj", "cfg_path": str(inputs.config)}]}
    path = out.with_name(f"{out.name}.yaml")
    OmegaConf.save(OmegaConf.create(plan), path)
    return ["experiment", str(path)]


def _hook_into(out: Path) -> None:
    """Let the hook be written into a folder that no interpreter reads."""
    from gitllm_plugin.host import import_hook

    import_hook.sysconfig.get_path = lambda name: str(out)  # pyright: ignore[reportAttributeAccessIssue]


def _train(inputs: Inputs, out: Path, *flags: str) -> list[str]:
    options = [f"run.output_dir={out}", "run.resume_ckpt_path=auto"]
    return ["train", "--cfg-path", str(inputs.config), *flags, "--options", *options]


_JOURNAL = r".*\.progress"
"""What an unfinished start has answered so far; the next goes on with it."""

WRITING = (
    Writing("m3it check", _check, replaces=True, status=1),
    Writing("m3it shard", _shard, grows="manifest.json"),
    Writing("m3it shard", _shard_by_two, grows="manifest.json", is_slow=True),
    Writing(
        "m3it merge",
        lambda inputs, out: ["m3it", "merge", str(out)],
        prepare=lambda inputs, out: shutil.copytree(inputs.parts, out, dirs_exist_ok=True) and None,
        grows="manifest.json",
    ),
    Writing(
        "m3it features",
        lambda inputs, out: [
            *("m3it", "features", "--cfg-path", str(inputs.sharded)),
            *("--options", f"datasets.m3it_wds.build_info.features={out}"),
        ],
    ),
    Writing(
        "m3it from-csv",
        lambda inputs, out: ["m3it", "from-csv", str(inputs.table), str(out), "--val", "0.2", "--test", "0.2"],
        replaces=True,
    ),
    Writing(
        "m3it from-coco",
        lambda inputs, out: ["m3it", "from-coco", str(inputs.captions), str(out), "--val", "0.2", "--test", "0.2"],
        replaces=True,
    ),
    Writing(
        "m3it from-messages",
        lambda inputs, out: ["m3it", "from-messages", str(inputs.conversations), str(out), "--val", "0.2"],
        replaces=True,
    ),
    Writing(
        "m3it from-dataset",
        lambda inputs, out: ["m3it", "from-dataset", str(inputs.parquet), str(out), "--val", "0.2"],
        replaces=True,
    ),
    Writing(
        "export", lambda inputs, out: ["export", str(inputs.run), str(out / "model")], done=r"model exists already"
    ),
    Writing("merge", lambda inputs, out: ["merge", str(inputs.model), str(out / "plain")], done="plain exists already"),
    Writing(
        "convert-checkpoint",
        lambda inputs, out: ["convert-checkpoint", str(inputs.published), str(out / "ours")],
        done="ours exists already",
    ),
    Writing(
        "words",
        lambda inputs, out: [
            *("words", str(inputs.table.with_name("7.png")), "--model", str(inputs.model)),
            *("--out", str(out)),
        ],
        replaces=True,
    ),
    Writing(
        "words",
        lambda inputs, out: [
            *("words", "--images", str(inputs.config.with_name("val.jsonl")), "--model", str(inputs.model)),
            *("--out", str(out)),
        ],
        replaces=True,
    ),
    Writing(
        "caption",
        lambda inputs, out: [
            *("caption", *(str(inputs.table.with_name(f"{number}.png")) for number in range(12))),
            *("--batch-size", "2", "--model", str(inputs.model), "--out", str(out / "captions.csv")),
        ],
        replaces=True,
        grows=_JOURNAL,
    ),
    Writing(
        "predict",
        lambda inputs, out: [
            *("predict", "--input", str(inputs.questions), "--output", str(out / "answers.jsonl")),
            *("--batch-size", "2", "--model", str(inputs.model)),
        ],
        replaces=True,
        grows=_JOURNAL,
    ),
    Writing("plot", lambda inputs, out: ["plot", str(inputs.run), "--output", str(out)], replaces=True),
    Writing("hook", lambda inputs, out: ["hook", "install"], replaces=True, before=_hook_into),
    Writing("train", lambda inputs, out: _train(inputs, out, "--dry-run"), dry_run_files),
    Writing("train", _train, training_files),
    Writing(
        "evaluate",
        lambda inputs, out: ["evaluate", str(inputs.run), "--options", f"run.output_dir={out}"],
        evaluation_files,
    ),
    Writing("experiment", _experiment, experiment_files, is_slow=True),
)


def leaves(commands: tuple[Command, ...] = COMMANDS, above: str = "") -> Iterator[str]:
    """Name every command that does something, with the group it belongs to in front."""
    for command in commands:
        if command.actions:
            yield from leaves(tuple(command.actions), f"{above}{command.name} ")
        else:
            yield above + command.name
