"""How errors and notes are told."""

import pytest

from gitllm_plugin.errors import DataError, break_lines, exit_status, tell

PATH = "/a/folder of nobody's/" + "x" * 90 + ".png"


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize(
    "text",
    [
        "error: mine.csv: 2 rows cannot be used, nothing was written:\n  mine.csv:3: the picture is broken, and so on",
        "note: photos: 8 kinds, the names of its folders: animals 146, town 79, food 67, seasonal 63, plants 39",
        "error: Ärger mit Bildern: ein well-known Wort wird nicht getrennt, und ein Satz ist länger als eine Zeile",
        "\nerror: a line\n\n    and one that is set in, long enough to be broken in nearly every terminal there is",
    ],
)
def test_lines_are_broken_between_words_and_nothing_is_lost(text, width):
    broken = break_lines(text, width)
    assert broken.split() == text.split()
    assert max(map(len, broken.splitlines())) <= width
    assert [line for line in broken.splitlines() if not line] == [line for line in text.splitlines() if not line]


@pytest.mark.parametrize(
    "whole",
    [
        "`gitllm train output/my pictures/train.yaml --options run.seed=1`",
        PATH.replace(" ", "_"),
        "`" + "word " * 20 + "`",
    ],
)
def test_what_is_to_be_copied_stays_in_one_piece(whole):
    assert whole in break_lines(
        f"error: it is there already, and is not what would be written; {whole} does, or not", 50
    )


def test_what_is_short_stays_as_it_is():
    for text in ("error: no", "  set in", "", "two\n\n  lines"):
        assert break_lines(text, 80) == text


def test_a_pipe_is_told_in_whole_lines(capsys):
    def fail():
        raise DataError("word " * 60)

    assert exit_status(fail) == 2
    assert capsys.readouterr().err == f"error: {'word ' * 60}\n"


def test_a_terminal_is_told_between_words(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    tell("note: " + "elephants " * 20)
    told = capsys.readouterr().err
    assert told.split() == ["note:", *["elephants"] * 20] and max(map(len, told.splitlines())) <= 50
