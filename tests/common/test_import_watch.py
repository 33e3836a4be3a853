"""Acting on the first import of a module: once, and without being noticed."""

import importlib
import importlib.util
import sys

import pytest

from gitllm_plugin.common.import_watch import ImportWatcher, when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that notes when its body runs, and what was noted."""
    name = f"watched_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{name}.py").write_text("import builtins\nbuiltins.noted.append('body')\n")
    noted = []
    monkeypatch.setattr("builtins.noted", noted, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    yield name, noted
    sys.meta_path[:] = before
    sys.modules.pop(name, None)


def test_before_and_after_the_body_and_once(module):
    name, noted = module
    ImportWatcher(name, after=lambda: noted.append("after"), before=lambda: noted.append("before")).watch()
    assert importlib.util.find_spec(name) is not None and noted == []
    importlib.import_module(name)
    assert noted == ["before", "body", "after"] and not any(name in repr(finder) for finder in sys.meta_path)
    importlib.reload(sys.modules[name])
    assert noted == ["before", "body", "after", "body"]


@pytest.mark.parametrize(("said", "wanted"), [(False, ["body"]), (True, ["body", "after"]), (None, ["body", "after"])])
def test_what_comes_before_can_say_no(module, said, wanted):
    name, noted = module
    ImportWatcher(name, after=lambda: noted.append("after"), before=lambda: said).watch()
    importlib.import_module(name)
    assert noted == wanted


def test_watchers_of_a_module_all_act_and_others_do_not(module):
    name, noted = module
    for number in range(3):
        before = lambda number=number: noted.append(-number)  # noqa: E731
        ImportWatcher(name, after=lambda number=number: noted.append(number), before=before).watch()
    ImportWatcher(f"{name}.other", after=lambda: noted.append("other")).watch()
    importlib.import_module(name)
    assert noted == [-2, -1, 0, "body", 0, 1, 2]
    assert not any(f"{name}>" in repr(finder) for finder in sys.meta_path)


@pytest.mark.parametrize("same", ["after", "before", "both"])
def test_a_watcher_that_does_the_same_is_not_added(module, same):
    name, noted = module
    acts = {act: lambda act=act: noted.append(act) for act in ("before", "after") if same in (act, "both")}
    for _ in range(3):
        ImportWatcher(name, **acts).watch()
    importlib.import_module(name)
    assert noted == [what for what in ("before", "body", "after") if what in (*acts, "body")]


@pytest.mark.parametrize("says_no", [0, 1, 2])
def test_one_that_says_no_does_so_for_itself(module, says_no):
    name, noted = module
    for number in range(3):
        answer = lambda number=number: number != says_no  # noqa: E731
        ImportWatcher(name, after=lambda number=number: noted.append(number), before=answer).watch()
    importlib.import_module(name)
    assert noted == ["body", *(number for number in range(3) if number != says_no)]


def test_what_is_there_already_is_acted_on_at_once(module):
    name, noted = module
    importlib.import_module(name)
    when_imported(name, lambda: noted.append("now"))
    assert noted == ["body", "now"]
    when_imported("no_such_module_anywhere", lambda: noted.append("never"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
    assert noted == ["body", "now"]


def test_a_body_that_fails_fails_as_without(module, tmp_path):
    name, noted = module
    (tmp_path / f"{name}.py").write_text("raise LookupError('its own')\n")
    ImportWatcher(name, after=lambda: noted.append("after")).watch()
    with pytest.raises(LookupError, match="its own"):
        importlib.import_module(name)
    assert noted == []
