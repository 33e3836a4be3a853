"""A small run that learns preferences, for tests that train for real."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.m3it_files import COLORS
from tests.small_run import TINY_LORA, write_small_run


def with_rejected(path: Path) -> None:
    """Give each row of a file of coloured squares another colour than the right one, as the answer that is worse."""
    names = sorted(COLORS)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        answer = row["outputs"] if isinstance(row["outputs"], str) else row["outputs"][0]
        color = next(name for name in names if name in answer)
        row["outputs"], row["rejected"] = answer, answer.replace(color, names[names.index(color) - 1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_preference_run(folder: Path, model: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write data and configuration of a run; arguments as for `write_small_run`.

    23 pairs about 12 pictures: batches of as many pictures do not have as many pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = {"task": "git_llm_dpo", "allow_untrained": True, "beta": 0.5, "test_splits": [], **changes}
    path = write_small_run(folder, {**TINY_LORA, **(model or {})}, **run)
    for split in ("train", "val", "test"):
        with_rejected(folder / f"{split}.jsonl")
    rows = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(rows[:-1]))
    config = OmegaConf.load(path)
    del config.run["max_len"]
    OmegaConf.save(config, path)
    return path
