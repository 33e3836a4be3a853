"""`gitllm m3it`: what it prints and what it refuses. What its actions do is tested in tests/m3it."""

import subprocess
import sys

import pytest

from gitllm_plugin.cli.main import main
from gitllm_plugin.m3it.catalog import CATALOG, PRESETS


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
