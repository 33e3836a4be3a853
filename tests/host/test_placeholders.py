"""Placeholders: what LAVIS may do with them while being imported, and what is refused."""

import builtins
import sys
import types

import pytest

from gitllm_plugin.host import placeholders
from gitllm_plugin.host.placeholders import Placeholder


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(placeholders, "standing_in", {"spacy": "not installed", "decord": "not installed"})


def test_looking_up_names_works_and_calling_is_refused(absent):
    with pytest.raises(ImportError, match=r"'spacy\.cli\.download'.*pip install spacy"):
        Placeholder("spacy").cli.download("en")


def test_the_call_lavis_makes_at_import_does_nothing(absent):
    assert Placeholder("decord").bridge.set_bridge("torch") is None


def test_subclassing_works_and_an_instance_is_refused(absent):
    class Pipeline(Placeholder("spacy").Language):
        pass

    with pytest.raises(ImportError, match="pip install spacy"):
        Pipeline("en")


def test_annotations_and_instance_checks_work(absent):
    doc = Placeholder("spacy").Doc

    def parse(text: doc | None, docs: doc[int]) -> None | doc: ...

    assert not isinstance("text", doc)


def test_special_names_are_absent_as_in_a_module(absent):
    assert not hasattr(Placeholder("spacy"), "__path__")
    assert not hasattr(Placeholder("spacy"), "__wrapped__")


def body_of(module_name: str, source: str) -> types.ModuleType:
    """A module's body run as the finder runs it."""
    module = types.ModuleType(module_name)
    with placeholders._PlaceholderImports():
        exec(source, vars(module))
    return module


def test_only_lavis_gets_placeholders(absent, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)  # makes `import spacy` fail as if it were absent
    assert isinstance(body_of("lavis.some_model", "import spacy.cli").spacy, Placeholder)
    assert body_of("lavis.some_model", "from spacy.cli import download").download.__name__ == "spacy.cli.download"
    with pytest.raises(ModuleNotFoundError):
        body_of("transformers.some_model", "import spacy")


@pytest.fixture
def late(tmp_path, monkeypatch):
    """A package that is put off, a folder on the path where it is, and what its body leaves behind."""
    (tmp_path / "frames.py").write_text("import builtins\nbuiltins.frames_ran = True\n\ndef read(name): return name\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(placeholders, "LATE_PACKAGES", frozenset({"frames", "frames_absent"}))
    monkeypatch.delitem(sys.modules, "frames", raising=False)
    yield
    builtins.__dict__.pop("frames_ran", None)
    sys.modules.pop("frames", None)


def test_what_is_put_off_is_imported_when_it_is_used(late):
    module = body_of("lavis.common.some_utils", "import frames as f\ndef load(name): return f.read(name)")
    assert "frames" not in sys.modules and not hasattr(builtins, "frames_ran")
    assert module.load("a.csv") == "a.csv" and "frames" in sys.modules


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("transformers.tables", "import frames"),
        ("lavis.tables", "from frames import read"),
        ("my_program", "import frames as f"),
    ],
)
def test_what_others_import_or_lavis_takes_a_name_of_comes_at_once(late, importer, line):
    body_of(importer, line)
    assert "frames" in sys.modules


def test_what_is_loaded_already_is_no_stand_in(late):
    import frames  # pyright: ignore[reportMissingImports]

    assert body_of("lavis.tables", "import frames").frames is frames


def test_a_late_package_that_is_absent_is_told_when_it_is_used(late):
    module = body_of("lavis.tables", "import frames_absent")
    with pytest.raises(ModuleNotFoundError, match="frames_absent"):
        module.frames_absent.read("a.csv")
    with pytest.raises(AttributeError, match="no_such_name"):
        body_of("lavis.tables", "import frames").frames.no_such_name  # noqa: B018


def test_packages_that_are_not_ours_to_replace_still_fail(absent):
    with pytest.raises(ModuleNotFoundError):
        body_of("lavis.some_model", "import no_such_package_anywhere")


def test_a_package_that_does_not_load_is_stood_in_for_with_the_reason(absent, tmp_path, monkeypatch):
    (tmp_path / "decord.py").write_text("raise OSError('libavcodec.so.58: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    decord = body_of("lavis.datasets.data_utils", "import decord").decord
    with pytest.raises(ImportError, match=r"does not load: libavcodec\.so\.58"):
        decord.VideoReader("film.mp4")


def test_the_override_is_gone_after_an_error_in_the_body(absent):
    before = builtins.__import__
    with pytest.raises(ZeroDivisionError):
        body_of("lavis.some_model", "1 / 0")
    assert builtins.__import__ is before
