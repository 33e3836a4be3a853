"""Examples on the page: questions of the data that a run was trained on, found from the run or its export."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gitllm_plugin.host.examples import MOST_EXAMPLES, examples_of
from gitllm_plugin.modeling.description import DESCRIPTION
from tests.m3it_files import write_m3it_jsonl
from tests.small_run import write_small_run


@pytest.fixture
def run(tmp_path):
    """What `examples_of` needs of a run: its configuration beside a file of weights."""
    folder = tmp_path / "output" / "20260102030405"
    folder.mkdir(parents=True)
    shutil.copy(write_small_run(tmp_path), folder / "config.yaml")
    (folder / "checkpoint_best.pth").write_bytes(b"weights")
    return folder


def change(run: Path, **node) -> None:
    """Give the run another data set."""
    config = OmegaConf.load(run / "config.yaml")
    config.datasets = {"m3it": {"build_info": node}}
    OmegaConf.save(config, run / "config.yaml")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def exported(run: Path, said) -> Path:
    folder = run.parent / "my-model"
    folder.mkdir()
    (folder / DESCRIPTION).write_text(json.dumps({"settings": said}))
    return folder


def test_a_runs_examples_are_the_first_pictures_of_its_test(run, tmp_path):
    found = examples_of(run)
    rows = rows_of(tmp_path / "test.jsonl")
    assert [each.text for each in found] == [row["inputs"] for row in rows[:2]]
    assert len({each.pictures for each in found}) == len(found) == 2
    assert all(each.instruction == "Answer the question about the image." or each.instruction is None for each in found)
    assert examples_of(run / "checkpoint_best.pth") == found


def test_an_exported_folder_beside_its_run_has_them_too(run):
    folder = exported(run, {"run": f"{run.name}/checkpoint_best.pth"})
    assert examples_of(folder) == examples_of(run) != []


def test_several_files_give_a_few_each_and_not_too_many(run, tmp_path):
    files = [tmp_path / f"{number}.jsonl" for number in range(5)]
    for number, file in enumerate(files):
        write_m3it_jsonl(file, rows=6, config=f"set{number}", seed=number, texts_per_image=2)
    change(
        run,
        annotations={"train": {"storage": str(tmp_path / "train.jsonl")}, "val": {"storage": list(map(str, files))}},
    )
    found = examples_of(run)
    assert len(found) == MOST_EXAMPLES and len({each.pictures for each in found}) == MOST_EXAMPLES


@pytest.mark.parametrize("damage", ["no data", "no weights", "no configuration", "rows", "other data set"])
def test_what_cannot_be_read_gives_none_and_no_error(run, tmp_path, damage):
    if damage == "no data":
        (tmp_path / "test.jsonl").unlink()
    elif damage == "no weights":
        (run / "checkpoint_best.pth").unlink()
    elif damage == "no configuration":
        (run / "config.yaml").unlink()
    elif damage == "rows":
        (tmp_path / "test.jsonl").write_text('{"inputs": "?"}\n\x00 no row\n[]\n')
    else:
        change(run, images={"storage": "nowhere"})
    assert examples_of(run) == []


@pytest.mark.parametrize("said", [{}, {"run": None}, {"run": 3}, {"run": "gone/checkpoint_best.pth"}, []])
def test_a_folder_whose_run_is_not_here_has_none(run, said):
    assert examples_of(exported(run, said)) == []


@pytest.mark.parametrize("way", ["../output/{run}", "{parent}/{run}", "./../output/{run}/checkpoint_best.pth"])
def test_a_folder_names_no_run_elsewhere(run, way):
    assert examples_of(run)
    assert examples_of(exported(run, {"run": way.format(run=run.name, parent=run.parent)})) == []
