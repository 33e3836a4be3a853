"""Tables that benchmarks write for the pages."""

import argparse
import json
import runpy
from pathlib import Path

from benchmarks import data_path, joins, tiles
from tests import environments

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def rows_of(path):
    return json.loads(path.read_text())["rows"]


def header_in_the_results(name):
    return json.loads((RESULTS / f"{name}.json").read_text())["header"]


def test_tiles_are_measured_and_written(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    tiles.add_arguments(parser)
    small = ["--image-size", "32", "--tiles", "1", "2", "--rounds", "1", "--output", str(tmp_path)]
    tiles.run(parser.parse_args(small))
    found = json.loads((tmp_path / "tiles.json").read_text())
    assert found["header"] == header_in_the_results("tiles") and found["of"].startswith("python -m benchmarks tiles")
    (one, *_), (two, images, *_) = found["rows"]
    assert (one, two) == ("1", "2") and float(images) > 1
    page = "<!-- results: tiles -->\n<!-- end of results -->"
    made = runpy.run_path(str(ROOT / "docs" / "_build" / "results.py"))["with_tables"](page, tmp_path)
    assert made.splitlines()[1:-1] == capsys.readouterr().out.splitlines()[:4]


def test_ways_to_join_are_measured_and_written(tmp_path):
    parser = argparse.ArgumentParser()
    joins.add_arguments(parser)
    joins.run(parser.parse_args(["--image-size", "32", "--rounds", "1", "--output", str(tmp_path)]))
    found, of_page = (json.loads((folder / "joins.json").read_text()) for folder in (tmp_path, RESULTS))
    assert found["header"] == of_page["header"] and found["of"].startswith("python -m benchmarks joins")
    # What three seeds learnt is read from the experiments, whichever models are measured: the page's is not stale.
    for column in (0, 1, 2, 6):
        assert [row[column] for row in found["rows"]] == [row[column] for row in of_page["rows"]]
    tokens = {row[1]: int(row[3]) for row in found["rows"]}
    assert tokens["pool"] == tokens["pixel_shuffle"] < tokens["linear_norm"] == tokens["linear"] == tokens["mlp"]


def test_ways_of_reading_are_compared_with_the_first():
    table = data_path.make_table({"a": [2.0, 1.0], "b": [0.5, 0.5], "records alone": [0.1, 0.2]}, rows=10)
    assert table.header == tuple(header_in_the_results("data_path"))
    assert table.rows == [("a", "10", "1.00", "1.00"), ("b", "20", "2.00", "3.00"), ("records alone", "100", "", "")]


def test_an_environment_that_is_tried_again_has_one_row_in_its_place(tmp_path):
    path = tmp_path / "environments.json"
    path.write_text(json.dumps({"of": "x", "header": [], "rows": []}))
    for name, disk in (("3.13-oldest", "1"), ("3.10-newest", "2"), ("3.13-oldest", "3")):
        environments.keep({"environment": name, "disk": disk}, path)
    assert rows_of(path) == [["3.10-newest", "2"], ["3.13-oldest", "3"]]
