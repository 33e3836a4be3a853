"""Writes the tables of the pages that are made of benchmarks/results: python docs/_build/results.py [EXPERIMENT.yaml]

With a list of runs, what is finished of it is taken first, whether or not all is: its results' file and its figures.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from gitllm_plugin.experiments.plan import Plan, read_plan
from gitllm_plugin.tables import Table

REPOSITORY = Path(__file__).parents[2]
RESULTS, IMAGES = REPOSITORY / "benchmarks" / "results", REPOSITORY / "docs" / "images"
_PLACE = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Take an experiment's results, where one is named, and write all tables anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", help="list of runs, as `gitllm experiment` takes it")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where its runs lie, if not in its output_dir")
    arguments = parser.parse_args(argv)
    if arguments.experiment is not None:
        take_experiment(arguments.experiment, arguments.output)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (made := with_tables(text)) != text:
            page.write_text(made, encoding="utf-8")
            print(f"{page.relative_to(REPOSITORY)}: written anew")
    return 0


def pages() -> list[Path]:
    """Give the pages that may have such tables."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def with_tables(text: str, results: Path = RESULTS) -> str:
    """Give a page's text with its tables as the results' files say, between the lines that name the file."""

    def made(place: re.Match) -> str:
        found = json.loads((results / f"{place[2]}.json").read_text(encoding="utf-8"))
        return f"{place[1]}{table_of(found).markdown()}\n{place[3]}"

    return _PLACE.sub(made, text)


def table_of(found: dict) -> Table:
    """Make the table of a results' file: that of an experiment's ``runs``, or the ``header`` and ``rows`` in it."""
    if "runs" in found:
        return _experiment_table(found["runs"])
    numbers = [
        column
        for column in range(1, len(found["header"]))
        if all(re.fullmatch(r"([\d.,]+(%| [GM]B)?)?|-", row[column]) for row in found["rows"])
    ]
    return Table(found["header"], found["rows"], numbers=numbers)


def _experiment_table(runs: list[dict]) -> Table:
    """Make the report's table without minutes, which other programs on a machine make longer, and with each seed."""
    from gitllm_plugin.experiments.report import results_table

    table = results_table(runs)
    header, rows = [*table.header[:-1]], [[*row[:-1]] for row in table.rows]
    if len(runs) > len(rows):
        header.append("each seed")
        for row in rows:
            found = [run["exact_match"] for run in runs if run["group"] == row[0]]
            row.append(", ".join("-" if value is None else f"{value:.1%}" for value in found))
    return Table(header, rows, numbers=range(1, len(header)))


def take_experiment(path: str, output: Path | None = None, results: Path = RESULTS, images: Path = IMAGES) -> None:
    """Write the results' file and the figures of an experiment's finished runs, by the name of the list.

    Runs that the results' file has already, of the same list and configuration, and that are not finished in the folder
    stay in it: seeds may be run on several machines. Figures are of the runs in the folder.

    Args:
        path: of the list of runs.
        output: the folder that its runs lie in; None: the list's own.
        results: folder of results' files.
        images: folder of figures.
    """
    from gitllm_plugin.experiments.record import StepRecord
    from gitllm_plugin.experiments.report import TRAINING_FIGURE, VALIDATION_FIGURE, draw_figures, read_results
    from gitllm_plugin.experiments.run import RECORD

    plan = read_plan(path)
    plan = dataclasses.replace(plan, output_dir=output or plan.output_dir)
    record = StepRecord(plan.output_dir / RECORD)
    runs, curves = read_results(plan, record)
    if not runs:
        raise SystemExit(f"{plan.output_dir} has no finished run of {path}; --output says where its runs lie")
    name, finished = Path(path).stem, {run["name"] for run in runs}
    others = [
        run.name
        for run in plan.runs
        if run.name in finished and record.get(run.name, "fingerprint") != run.fingerprint()
    ]
    if others:
        print(f"the list or its configuration was another when these were run: {'; '.join(others)}")
    versions = json.loads((Path(runs[0]["folder"]) / "versions.json").read_text(encoding="utf-8"))
    target = results / f"{name}.json"
    taken = {run["name"]: {key: value for key, value in run.items() if key != "folder"} for run in runs}
    for run in taken.values():
        run["fingerprint"] = record.get(run["name"], "fingerprint")
    taken = _earlier(plan, target) | taken
    found = {
        "of": f"gitllm experiment {path}",
        "title": plan.title,
        "runs": [taken[run.name] for run in plan.runs if run.name in taken],
        "not_run": [run.name for run in plan.runs if run.name not in taken],
        "environment": {key: versions[key] for key in versions if key not in ("command", "trained_parameters")},
    }
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    validation = images / f"{name}_{VALIDATION_FIGURE}"
    draw_figures(plan.title, curves, images / f"{name}_{TRAINING_FIGURE}", validation)
    if all(len(run.evaluations) == 1 for run in curves):
        validation.unlink()  # points without a line, which the table has
    print(f"{name}: {len(taken)} runs of {len(plan.runs)}, {len(runs)} of them from {plan.output_dir}")


def _earlier(plan: Plan, target: Path) -> dict[str, dict]:
    """Give the runs of a results' file that are of this list, by their names."""
    if not target.is_file():
        return {}
    prints = {run.name: run.fingerprint() for run in plan.runs}
    runs = json.loads(target.read_text(encoding="utf-8"))["runs"]
    return {run["name"]: run for run in runs if prints.get(run["name"]) == run.get("fingerprint", "unknown")}


if __name__ == "__main__":
    raise SystemExit(main())
