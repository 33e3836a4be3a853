"""Numbers that stand in the pages are those of the results' files, as the pages round them."""

import json
import re
import runpy

import pytest

from tests.docs.pages import PAGES, REPOSITORY, name_of

RESULTS = REPOSITORY / "benchmarks" / "results"
MADE = runpy.run_path(str(REPOSITORY / "docs" / "_build" / "results.py"))


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def page(name):
    """A page without bold type and with single blanks, so that rows compare."""
    text = (REPOSITORY / name).read_text(encoding="utf-8").replace("**", "")
    return re.sub(r"[ \n]+", " ", text)


def first(spread):
    """The median of '1.41 (1.27 to 1.45)'."""
    return float(spread.split()[0])


def of_speed():
    one, five = result("cpu-opt-350m")["cases"]
    ways = ("article, padded to 128", "article, padded to 512")
    plain, several = ([first(case["ways"][way]["ours_is_faster"]) for way in ways] for case in (one, five))
    share = first(one["ways"]["ours, features of images given"]["ours_is_faster"])
    yield "| one text an image | {:.2f} | {:.2f} |".format(*plain)
    yield "| one text an image, features in the place of images | {:.2f} | {:.2f} |".format(*(x / share for x in plain))
    yield "| five texts an image | {:.2f} | {:.1f} |".format(*several)
    for name, case in zip(
        ("four images, one text each", "one image, five texts"), result("cpu-opt-350m")["memory"], strict=True
    ):
        cells = [case["ways"][way] for way in (*ways, "ours")]
        yield f"| {name} | " + " | ".join(f"{c['peak_gib']:.2f} ({c['above_weights_gib']:.2f})" for c in cells) + " |"
    gflop = [one["ways"][way]["linear_gflop"] for way in ("article, padded to 128", "ours")]
    yield "{:.0f} GFLOP in linear layers there, {:.0f} here ({:.2f} times)".format(*gflop, gflop[0] / gflop[1])


def of_features():
    found = result("features-opt-350m")
    for name, title in (
        ("read", "reading"),
        ("read and encode", "reading and encoding"),
        ("training step", "the whole training step"),
    ):
        times = found[name]["times_as_fast"]["median"]
        yield re.compile(rf"\| {title} \| [\d.,]+ \| [\d.,]+ \| {times:,.{_digits(times)}f} \|")


def _digits(times):
    return 0 if times > 100 else 1 if times > 2 else 2


def of_llama_cpp():
    for name, way in result("llama_cpp")["ways"].items():
        yield re.compile(rf"\| [^|]*{re.escape(name.split(', ')[-1])}[^|]* \| {way['equal']} \| {way['ms']:.0f} \| ")


def of_the_demonstration(form):
    found = result("demo")
    for config, score in found["scores"].items():
        yield form(config, score, found)


def in_the_readme(config, score, found):
    name = {"caption": "captions", "open": "open questions", "yesno": "yes/no questions"}[config]
    right, guess = score["right"] / score["examples"], found["blind_guess"][config]
    return re.compile(rf"\| {name}[^|]* \| {score['examples']:,} \| {right:.1%} \| {guess:.1%} \|")


def in_the_gallery(config, score, found):
    return re.compile(rf"\| {score['examples']:,} \| {score['right']:,} \|")


def of_peers():
    for name in ("heron", "llava", "nanovlm"):
        found = result(f"peers-{name}")
        way = list(found["ways"])[-1]
        one, five = (case["ways"][way]["ours_is_faster"]["median"] for case in found["train"][:2])
        yield re.compile(rf"{one:.1f} \({five:.1f}\)")


PLACES = [
    ("docs/benchmarks.md", of_speed),
    ("docs/benchmarks.md", of_features),
    ("docs/llama_cpp.md", of_llama_cpp),
    ("README.md", lambda: of_the_demonstration(in_the_readme)),
    ("docs/gallery.md", lambda: of_the_demonstration(in_the_gallery)),
    ("README.md", of_peers),
]


@pytest.mark.parametrize(("name", "rows"), PLACES, ids=lambda each: each if isinstance(each, str) else "")
def test_numbers_are_those_of_the_results(name, rows):
    text = page(name)
    wanted = list(rows())
    missing = [str(row) for row in wanted if not (row.search(text) if isinstance(row, re.Pattern) else row in text)]
    assert wanted and missing == []


def test_another_number_is_found():
    """The comparison itself: of three rows that are changed by a digit none is in the page."""
    text = page("docs/benchmarks.md")
    rows = [row for row in of_speed() if row.startswith("| ")]
    changed = [re.sub(r"\d(?= \|$|\) \|$)", lambda m: str((int(m[0]) + 1) % 10), row) for row in rows]
    assert len(changed) >= 3
    assert [row for row in changed if row in text] == []


def test_answers_that_are_wrong_add_up():
    found = result("demo")
    score = found["scores"]
    wrong = {config: each["examples"] - each["right"] for config, each in score.items()}
    text = page("docs/gallery.md")
    for config, name in (("caption", "captions"), ("open", "open"), ("yesno", "yesno")):
        kinds = {kind: number for kind, number in found["wrong"].items() if kind.startswith(name)}
        assert sum(kinds.values()) == wrong[config]
        assert all(f"{number} " in text for number in kinds.values())


@pytest.mark.parametrize("page", [p for p in PAGES if "<!-- results: " in p.read_text(encoding="utf-8")], ids=name_of)
def test_tables_are_made_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert MADE["with_tables"](text) == text, "run: python docs/_build/results.py"
    assert text.count("<!-- results: ") == text.count("<!-- end of results -->")


@pytest.mark.parametrize(
    ("written", "changed"),
    [
        (" 0.4716 |", " 0.4717 |"),
        ("85.9% ± 24.4%", "86.9% ± 24.4%"),
        ("2,029,248", "2,029,249"),
        ("| pool  ", "| loop  "),
    ],
)
def test_a_changed_cell_is_found_and_made_right(written, changed):
    text = (REPOSITORY / "docs" / "experiments.md").read_text(encoding="utf-8")
    wrong = text.replace(written, changed, 1)
    assert wrong != text and MADE["with_tables"](wrong) == text


def test_a_table_of_cells_has_its_numbers_on_the_right(tmp_path):
    rows = [["red", "1,200", "-"], ["green", "8", "0.5"], ["blue", "", "12 of 13"]]
    (tmp_path / "colours.json").write_text(json.dumps({"header": ["colour", "n", "share"], "rows": rows}))
    made = MADE["with_tables"]("a\n<!-- results: colours -->\nold\n<!-- end of results -->\nb", tmp_path)
    lines = made.splitlines()
    assert lines[3] == "|--------|------:|----------|" and lines[5].split("|")[2] == "     8 " and lines[-1] == "b"


_NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?%?(?![\w.-]*\d)")
PROSE = {
    "README.md": ("demo", "laptop_yesno", "peers-heron", "peers-llava", "peers-nanovlm", "cpu-opt-350m"),
    "docs/asking.md": (),
    "docs/benchmarks.md": tuple(path.stem for path in RESULTS.glob("*.json")),
    "docs/data.md": ("data_path", "features-opt-350m"),
    "docs/evaluation.md": ("demo",),
    "docs/experiments.md": (
        "demo",
        *(path.stem for path in RESULTS.glob("*_exp*.json")),
        *(path.stem for path in RESULTS.glob("laptop_*.json")),
    ),
    "docs/gallery.md": ("demo",),
    "docs/index.md": (),
    "docs/llama_cpp.md": ("llama_cpp",),
    "docs/preferences.md": ("preferences", "preferences_yesno"),
    "docs/questions.md": ("data_memory", "cpu-opt-350m"),
    "docs/scale.md": ("memory_llama2_70b", "cpu-opt-350m", "demo"),
    "docs/things.md": ("things",),
    "docs/tutorial.md": ("tutorial", "tutorial_kinds"),
    "docs/words.md": ("words", "demo"),
}
"""Pages, and the results' files that numbers of their text come from, beside those that were measured by hand."""


def leaves(value):
    """All numbers in a results' file, those in its texts too, and shares of examples that were right."""
    if isinstance(value, dict):
        share = [value["right"] / value["examples"]] if value.keys() >= {"right", "examples"} else []
        return share + leaves(list(value.values()))
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    if isinstance(value, str):
        return [float(number.rstrip("%").replace(",", "")) for number in _NUMBER.findall(value)]
    return [float(value)] if isinstance(value, int | float) else []


def unknown_numbers(name, text):
    """The numbers with decimals, or in percent, of a page's prose that no value in the files is rounded to."""
    known = leaves([result("by_hand").get(name, {}), *map(result, PROSE[name])])
    prose = re.sub(r"^```.*?^```$|<!--.*?-->|`[^`]*`|\]\([^)]*\)", "", text, flags=re.MULTILINE | re.DOTALL)
    unknown = []
    for number in _NUMBER.findall(re.sub(r"^\|.*$", "", prose, flags=re.MULTILINE)):
        if "." not in number and not number.endswith("%"):
            continue
        value, digits = float(number.rstrip("%").replace(",", "")), len(number.rstrip("%").partition(".")[2])
        scales = (100, 1) if number.endswith("%") else (1,)
        if not any(abs(abs(leaf) * scale - value) <= 0.5 * 10**-digits + 1e-9 for leaf in known for scale in scales):
            unknown.append(number)
    return unknown


@pytest.mark.parametrize("name", PROSE)
def test_numbers_of_prose_are_in_the_results(name):
    assert unknown_numbers(name, (REPOSITORY / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "written", "changed"),
    [
        ("docs/words.md", "answers 96% of these", "97%"),
        ("docs/preferences.md", "went from 80.4% to", "80.5%"),
        ("docs/experiments.md", "the loss from 1.40 to", "1.43"),
        ("docs/tutorial.md", "ROUGE-L 36.0, no", "36.1"),
    ],
)
def test_a_changed_number_of_prose_is_found(name, written, changed):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    wrong = text.replace(written, re.sub(r"[\d.]+%?", changed, written, count=1))
    assert wrong != text and unknown_numbers(name, wrong) == [changed]


def test_damaged_files_add_up():
    *rows, total = result("damaged_files")["rows"]
    counts = [[int(cell.replace(",", "")) for cell in row[1:]] for row in rows]
    assert {sum(row) for row in counts} == {4_000}
    assert [f"{sum(column):,}" for column in zip(*counts, strict=True)] == total[1:]
    inputs = f"{sum(map(sum, counts)):,} inputs of {len(rows)} formats: {total[-1]} findings"
    assert inputs in page("docs/reliability.md")
