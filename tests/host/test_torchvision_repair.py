"""torchvision beside a torch build of another kind, and where nothing is wrong."""

import sys

import pytest

from gitllm_plugin.common import torchvision_repair
from gitllm_plugin.errors import HostError

# A torchvision as broken as the real one beside a CPU-only torch, but with an operator of another name too,
# so that this runs on every machine.
BROKEN = """
import torch
@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::of_a_later_release")
def meta_other(dets): ...
"""
PROBE = """
import sys, warnings
sys.path.insert(0, {path!r})
from gitllm_plugin.common import torchvision_repair
from gitllm_plugin.common.torchvision_repair import TorchvisionWarning, repair_torchvision
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert repair_torchvision() and repair_torchvision()
assert [warning.category for warning in caught if "torchvision" in str(warning.message)] == [TorchvisionWarning]
assert str(caught[-1].message) == torchvision_repair.fault and "nms, of_a_later_release" in torchvision_repair.fault
import torch, torchvision
assert torchvision.__file__.startswith({path!r})
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture
def fake_torchvision(tmp_path, monkeypatch):
    """Puts a torchvision of our own first on the path, for this process, with the given `__init__`."""

    def write(init: str, meta: str = ""):
        folder = tmp_path / "torchvision"
        folder.mkdir()
        (folder / "__init__.py").write_text(init)
        (folder / "_meta_registrations.py").write_text(meta)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the fake; monkeypatch puts the real one back


@pytest.fixture
def broken(tmp_path):
    """A folder with a torchvision that is broken, whatever this machine's is."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("from torchvision import _meta_registrations")
    (tmp_path / "torchvision" / "_meta_registrations.py").write_text(BROKEN)
    return tmp_path


def test_missing_operators_are_declared_and_refuse_calls(run_python, broken):
    finished = run_python(PROBE.format(path=str(broken)))
    assert finished.returncode == 0, finished.stderr
    assert "torchvision::nms was called" in finished.stdout


COMMAND = """
import sys
sys.path.insert(0, {path!r})
from gitllm_plugin.common.torchvision_repair import repair_torchvision
def look(args):
    repair_torchvision()
    return 0
import gitllm_plugin.cli.main
from gitllm_plugin.cli.command import Command
cli = sys.modules["gitllm_plugin.cli.main"]
cli.COMMANDS = [Command("look", "", "", call=look)]
"""


@pytest.mark.parametrize(
    ("call", "rank", "start"),
    [
        ("cli.main(['look'])", "0", None),
        ("look(None)", "1", "<torchvision>:0: TorchvisionWarning: "),
    ],
)
def test_a_command_leaves_it_to_the_doctor_and_a_library_warns_without_a_source_line(
    run_python, broken, call, rank, start
):
    finished = run_python(COMMAND.format(path=str(broken)) + call, env={"RANK": rank})
    assert finished.returncode == 0, finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == (0 if start is None else 1), finished.stderr
    assert start is None or lines[0].startswith(f"{start}torchvision is of another build than torch")


def test_a_torchvision_that_loads_is_left_alone(fake_torchvision, monkeypatch):
    monkeypatch.setattr(torchvision_repair, "_declare", lambda names: pytest.fail("declared operators"))
    fake_torchvision("")
    monkeypatch.setattr(torchvision_repair, "_libraries", [])
    assert torchvision_repair.repair_torchvision() is False


def test_another_failure_of_torchvision_is_shown_as_it_is(fake_torchvision):
    fake_torchvision("raise RuntimeError('something else')")
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_repair.repair_torchvision()


def test_no_torchvision(run_python):
    finished = run_python(
        "from gitllm_plugin.common.torchvision_repair import repair_torchvision; repair_torchvision()",
        hidden=["torchvision"],
    )
    assert finished.returncode == 1
    assert HostError.__name__ in finished.stderr and "pip install torchvision" in finished.stderr
