"""From a table or a folder of pictures to a configuration that trains on it, with what the models themselves say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path

import orjson

from gitllm_plugin.errors import ConfigError

DEMO = "demo"
"""In the place of a model's name: that of the demonstration, which `make demo` and `make models` fetch."""

_OF_DEMO = {"language model": "smollm2-135m-instruct", "image encoder": "efficientnet-lite0"}
_CHOSEN = ("chat_template", "lora:", "agg_metric", "batch_size_train", "max_epoch", "init_lr")
_LEAST_STEPS = 300
_LEAST_EPOCHS, _MOST_EPOCHS = 3, 50
_LOOKED_AT = 2000  # rows
_SMALL = 1024
"""Width of language models that learn quickly: LoRA on larger ones takes a lower rate."""

_CONFIG = """\
# gitllm train {path}
#
# Written for {data}; change what you like. `gitllm keys` says what else there is.

model:
  arch: git_llm
  model_type: smollm2_135m  # the models below take the place of its own
  language_model: {language_model}
  image_encoder: {image_encoder}  # which says size and normalization of pictures
  chat_template: {chat_template}  # {why_chat}
  trainable: proj+lora
  lora: {{rank: 16, alpha: 32}}
  lr_scale: {{proj: 10}}

datasets:
  m3it:
    text_processor:
      train: {{name: git_llm_instruction, template: plain}}
      eval: {{name: git_llm_instruction, template: plain}}
    build_info:
      annotations:
{annotations}

run:
  task: m3it
  runner: git_llm
  output_dir: {output}
  resume_ckpt_path: auto  # an interrupted run of this file is gone on with
  train_splits: [train]
  valid_splits: {valid_splits}
  test_splits: {test_splits}
  agg_metric: {agg_metric}  # chooses the best epoch, as {why_metric}
  batch_size_train: {batch_size}
  batch_size_eval: 32
  max_epoch: {epochs}
  init_lr: {rate}
  warmup_steps: {warmup}
  max_len: 64  # tokens of an answer
"""


@dataclass(frozen=True)
class Written:
    """What was made of a table.

    Attributes:
        config: the YAML file.
        choices: those of its lines that were chosen by the models, the table and this machine.
        rows: how many each split has.
    """

    config: Path
    choices: tuple[str, ...]
    rows: Mapping[str, int]


def write_config(
    data: str | Path | Sequence[str | Path],
    language_model: str,
    image_encoder: str,
    output: str | Path | None,
    tell: Callable[[str], None],
    images: Path | None = None,
) -> Written:
    """Turn a table or folder into rows, and write a configuration that trains on them.

    One picture in ten is for validation and one in ten for the test, where the table does not say its splits.

    Args:
        data: as ``gitllm m3it from-csv`` and ``from-coco`` take it.
        language_model: hub name or folder, or :data:`DEMO`.
        image_encoder: the same.
        output: folder of rows, configuration and runs; None: one below ``output``, named as the table is.
        tell: is told what was not read of the table or may not be as it was meant.
        images: the folder that pictures are relative to; None: the table's.

    Raises:
        ConfigError: a model cannot be read, or the file is there and was changed.
        DataError: the table or a row of it cannot be used.
        StorageError: the output cannot be written.
    """
    from gitllm_plugin.common.files import write_atomically
    from gitllm_plugin.m3it.from_table import FromTable, convert_table, name_of, tables_of

    tables = tables_of(data)
    folder = Path(output).expanduser() if output else Path("output") / Path(name_of(tables)).stem
    models = {what: _find(what, name) for what, name in zip(_OF_DEMO, (language_model, image_encoder), strict=True)}
    facts = _facts_of(**{what.replace(" ", "_"): name for what, name in models.items()})
    rows = convert_table(tables, folder / "data", FromTable(images=images, val=0.1, test=0.1), tell=tell)
    path = folder / "train.yaml"
    text = _CONFIG.format(
        path=path,
        data=" ".join(map(str, tables)),
        **{what.replace(" ", "_"): _quoted(name) for what, name in models.items()},
        annotations="\n".join(
            f"        {split}: {{storage: {_quoted(str(folder / 'data' / f'{split}.jsonl'))}}}" for split in rows
        ),
        output=_quoted(str(folder / "runs")),
        valid_splits=f"[{'val' if 'val' in rows else ''}]",
        test_splits=f"[{'test' if 'test' in rows else ''}]",
        **facts,
        **_metric_for(folder / "data" / f"{next(iter(rows))}.jsonl"),
        **_length_for(rows.get("train", 0)),
    )
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} is there already, and is not what would be written: train with it, `gitllm train {path}`, give "
            "another --output, or remove it"
        )
    write_atomically(path, text)
    chosen = [line.strip() for line in text.splitlines() if line.strip().startswith(_CHOSEN)]
    return Written(path, tuple(chosen), rows)


def _find(what: str, name: str) -> str:
    """Give a model's folder or name; of the demonstration's, the folder.

    Raises:
        ConfigError: the demonstration's was not fetched.
    """
    if name != DEMO:
        return str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    cache = Path(os.environ.get("GITLLM_CACHE") or Path.home() / ".cache" / "gitllm").expanduser()
    folder = cache / "demo" / _OF_DEMO[what]
    if not folder.is_dir():
        option = f"--{what.replace(' ', '-')}"
        raise ConfigError(
            f"the demonstration's {what} is not on this machine (looked for {folder}): name another with {option}, a "
            "folder or a name on the model hub, or run `make models` in a checkout, which fetches it"
        )
    return str(folder)


def _facts_of(language_model: str, image_encoder: str) -> dict[str, str]:
    """Find what the configuration says of the models, before anything is written."""
    from gitllm_plugin.modeling.pretrained import load_config, load_tokenizer

    if not image_encoder.startswith("tiny:"):
        load_config(image_encoder, "image encoder")
    if language_model.startswith("tiny:"):
        return {"chat_template": "false", "why_chat": "the tokenizer has none", "rate": "1e-3"}
    chats = bool(load_tokenizer(language_model, "language model").chat_template)
    width = getattr(load_config(language_model, "language model").get_text_config(), "hidden_size", _SMALL)
    return {
        "chat_template": str(chats).lower(),
        "why_chat": "as the tokenizer has one" if chats else "the tokenizer has none",
        "rate": "1e-3" if width <= _SMALL else "2e-4",
    }


def _metric_for(rows: Path) -> dict[str, str]:
    """Choose the score by which the best epoch is chosen: of answers that repeat, as kinds do, whether they are right.

    Args:
        rows: a file, of which the first rows tell.
    """
    with open(rows, "rb") as file:
        answers = [str(orjson.loads(line)["outputs"]) for line in islice(file, _LOOKED_AT)]
    if 2 * len(set(answers)) <= len(answers):
        return {"agg_metric": "exact_match", "why_metric": "answers repeat"}
    return {"agg_metric": "rouge_l", "why_metric": "answers differ"}


def _length_for(rows: int) -> dict[str, int]:
    """Choose batches, and as many epochs as make some hundred steps of a small table."""
    import torch

    batch_size = max(1, min(rows, 8 if torch.cuda.is_available() else 4))
    batches = max(1, ceil(rows / batch_size))
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, ceil(_LEAST_STEPS / batches)))
    return {"batch_size": batch_size, "epochs": epochs, "warmup": min(20, batches * epochs // 10)}


def _quoted(text: str) -> str:
    """Write a text as YAML has it, in which nothing is replaced."""
    return json.dumps(text.replace("${", "\\${"), ensure_ascii=False)
