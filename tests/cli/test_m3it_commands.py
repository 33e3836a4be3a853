"""`gitllm m3it`: what it prints and what it refuses. What its actions do is tested in tests/m3it."""

import json
import subprocess
import sys

import pytest

from gitllm_plugin.cli.main import main
from gitllm_plugin.m3it.catalog import CATALOG, PRESETS
from tests.m3it_files import write_m3it_jsonl


def test_list_prints_catalog_and_presets(capsys):
    assert main(["m3it", "list"]) == 0
    printed = capsys.readouterr().out
    for said in ("coco-cn", "chinesefoodnet-10", "ImageNet: research only", f"{len(CATALOG)} together", *PRESETS):
        assert said in printed


def test_list_of_a_preset_has_its_sums(capsys):
    assert main(["m3it", "list", "--preset", "article_exp3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["26", "together", "1,361,650", "213,786", "83,769"]
    assert len(lines) == 26 + 5
    assert not any(line.startswith("science-qa") for line in lines)


@pytest.mark.parametrize(
    "command",
    [["list", "--preset", "x"], ["check", "nowhere"], ["shard", "nowhere", "out"], ["merge", "nowhere"]],
)
def test_what_is_not_there_is_status_2(command, capsys):
    assert main(["m3it", *command]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("action", [[], ["list"], ["check"], ["shard"], ["merge"]])
def test_every_action_has_help(action, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["m3it", *action, "--help"])
    assert stopped.value.code == 0
    assert "usage: gitllm m3it" in capsys.readouterr().out


def test_listing_imports_neither_torch_nor_lavis():
    code = (
        "import sys; from gitllm_plugin.cli.main import main; main(['m3it', 'list']); "
        "print(sorted({'torch', 'lavis', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["dogs/train", "cats/val"], {"dogs", "cats"}),
        (["coco/train"], {"coco"}),  # a name of the catalog, of which no other split is asked
        (["train", "val"], {"rows"}),
    ],
)
def test_own_rows_are_sharded_without_their_names(names, made, tmp_path, capsys):
    for name in names:
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        write_m3it_jsonl(tmp_path / "rows" / f"{name}.jsonl", 3)
    assert main(["m3it", "shard", str(tmp_path / "rows"), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert set(json.loads((tmp_path / "out" / "manifest.json").read_text())["configs"]) == made
    assert "missing" not in capsys.readouterr().err


@pytest.mark.parametrize("asked", [["--configs", "dogs", "vqa-v2"], ["--preset", "core"], []])
def test_what_is_asked_for_or_downloaded_and_missing_is_told(asked, tmp_path, capsys):
    (tmp_path / "dogs").mkdir()
    write_m3it_jsonl(tmp_path / "dogs" / "train.jsonl", 3)
    if not asked:
        (tmp_path / "data" / "vqa" / "vqav2").mkdir(parents=True)
    assert main(["m3it", "shard", str(tmp_path), str(tmp_path / "out"), "--workers", "1", *asked]) == 2
    assert "vqa-v2" in capsys.readouterr().err


def test_of_a_folder_of_nothing_a_few_names_are_enough(tmp_path, capsys):
    assert main(["m3it", "check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) < 12 and "from-coco" in error and " more\n" in error
