"""The table of published values in docs/heron.md, and the configurations that it speaks of."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gitllm_plugin.config.model import GitLLMSettings
from gitllm_plugin.config.run import RunSettings

ROOT = Path(__file__).parents[2]
CONFIGS = ("exp1_proj_lora", "exp2_llama2_7b", "exp3_llama2_7b")
ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs" / "heron.md").read_text().splitlines()
    if line.startswith(("| `model.", "| `run."))
]


def values(cell):
    return re.findall("`([^`]+)`", cell)


def defaults(settings):
    return {field.name: field.default for field in fields(settings) if isinstance(field.default, str | int | float)}


def configuration(name):
    """Defaults, the type's preset, and the shipped file."""
    given = OmegaConf.load(ROOT / "projects" / "git_llm" / "train" / f"{name}.yaml")
    preset = OmegaConf.load(ROOT / "configs" / "models" / "git_llm" / f"{given.model.model_type}.yaml")
    start = {"model": defaults(GitLLMSettings), "run": defaults(RunSettings)}
    return OmegaConf.merge(start, {"model": preset.model}, {"model": given.model, "run": given.run})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
def test_the_page_has_the_shipped_value_and_a_reason_where_it_is_not_the_published_one(row):
    (key,), published, reason = values(row[0]), values(row[1]), row[5] if len(row) > 5 else ""
    own = [values(cell) for cell in row[2:5]]
    assert published and all(len(value) == 1 for value in own)
    shipped = [str(OmegaConf.select(configuration(name), key)) for name in CONFIGS]
    assert [value for (value,) in own] == shipped
    assert all(value in published for value in shipped) or len(reason.strip("| ")) > 20


def test_the_table_was_found():
    assert len(ROWS) == 17


@pytest.mark.parametrize(
    "config", sorted((ROOT / "projects/git_llm/train").glob("exp[123]_*.yaml")), ids=lambda p: p.stem
)
def test_all_runs_of_an_experiment_have_the_values_of_the_table(config):
    own, reference = (
        configuration(name)
        for name in (config.stem, next(name for name in CONFIGS if name.startswith(config.stem[:4])))
    )
    for row in ROWS:
        (key,) = values(row[0])
        if key not in ("model.language_model", "model.trainable") and not (
            key.startswith("model.lora.") and own.model.lora is None
        ):
            assert OmegaConf.select(own, key) == OmegaConf.select(reference, key), key
