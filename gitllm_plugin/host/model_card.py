"""The card of an exported model, its README.md: what it is, what it was trained on, its scores, and how to use it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gitllm_plugin.common.run_files import BEST, run_folder_of
from gitllm_plugin.m3it.catalog import BY_NAME
from gitllm_plugin.m3it.prompts import build_prompt
from gitllm_plugin.modeling import TextEncoder

CARD = "README.md"
LOSS_CURVE = "train_loss.png"
_LICENSE = re.compile(r"^license(?:_name)?:\s*(\S.*)$", re.MULTILINE)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PLACE, _QUESTION = "QUESTION", "what is in the picture?"
_COUNTS = ("num_examples", "epoch", "split", "best_epoch", "agg_metrics", "primary")


def write_card(folder: Path, name: str, library: str, use: str, config: Mapping[str, Any], checkpoint: Path) -> None:
    """Write the card.

    Args:
        folder: the exported model's.
        name: what the model is called, that of the folder in the end.
        library: the package that opens it, as the hub calls it.
        use: how to.
        config: plain values of the run's resolved configuration.
        checkpoint: the weights that were exported.
    """
    model = config["model"]
    sources = {part: model.get(part) for part in ("language_model", "image_encoder", "folder") if model.get(part)}
    sections = {
        None: _front_matter(library, sources) + f"\n# {name}\n\nGIT-LLM, made with `gitllm_plugin`: a language model "
        "that reads a picture's vectors in front of the text. The picture's tokens attend to each other, the text to "
        "the picture and to the text before it.",
        "Use": use,
        "Parts": "\n".join([*_parts(model, sources), "", _licences(sources)]),
        "Training data": "\n".join(_data(config)),
        "Scores": "\n".join([*_scores(checkpoint), *_picture(folder, checkpoint)]),
        "Limits": "It says wrong things with the same fluency as right ones, and inherits what its parts learnt, "
        "prejudices included. It was not tested for decisions about people.",
    }
    text = "\n".join(f"## {title}\n\n{body}\n" if title else f"{body}\n" for title, body in sections.items())
    (folder / CARD).write_text(text, encoding="utf-8")


def use_of_folder(name: str) -> str:
    """Say how a folder is used that this package opens."""
    return f"""```python
from gitllm_plugin import Pipeline

pipeline = Pipeline.from_pretrained({name!r})
print(pipeline.answer("picture.jpg", {_QUESTION!r}))
```

```bash
gitllm ask picture.jpg {json.dumps(_QUESTION)} --model {name}
```

By transformers' names, after `import gitllm_plugin`:

```python
import gitllm_plugin  # before transformers' classes: they learn what a git_llm is
from transformers import pipeline

ask = pipeline("image-text-to-text", model={name!r})
picture = {{"type": "image", "path": "picture.jpg"}}
messages = [{{"role": "user", "content": [picture, {{"type": "text", "text": {_QUESTION!r}}}]}}]
print(ask(text=messages, return_full_text=False)[0]["generated_text"])
```"""


def use_of_stock(name: str, text_encoder: TextEncoder, text_processor: Mapping[str, Any], num_image_tokens: int) -> str:
    """Say how a folder is used that transformers opens, with the run's prompt.

    Args:
        name: of the folder.
        text_encoder: the run's, whose ids the lines give again.
        text_processor: the run's, with ``template`` and ``instruction`` where they are not the usual ones.
        num_image_tokens: of a picture.
    """
    template, instruction = text_processor.get("template", "article"), text_processor.get("instruction")
    ids = _way_to_ids(text_encoder, build_prompt(template, instruction, _QUESTION))
    pattern = build_prompt(template, instruction, _PLACE)
    return f"""It is a `PaliGemmaForConditionalGeneration`; transformers alone opens it:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, PaliGemmaForConditionalGeneration

name, picture, question = {name!r}, "picture.jpg", {_QUESTION!r}
model = PaliGemmaForConditionalGeneration.from_pretrained(name)
tokenizer, images = AutoTokenizer.from_pretrained(name), AutoImageProcessor.from_pretrained(name)

pixels = images(Image.open(picture).convert("RGB"), return_tensors="pt")["pixel_values"]
prompt = {pattern!r}.replace({_PLACE!r}, question)
{ids}
image = torch.full((1, {num_image_tokens}), model.config.image_token_id)  # the tokens of one picture
inputs = {{
    "pixel_values": pixels,
    "input_ids": torch.cat([image, text], 1),
    "attention_mask": torch.ones(1, {num_image_tokens} + text.shape[1], dtype=torch.long),
    # 0 on the picture, whose tokens attend to each other, and 1 on the text, which is causal
    "token_type_ids": torch.cat([torch.zeros_like(image), torch.ones_like(text)], 1),
}}
tokens = model.generate(**inputs)[0, {num_image_tokens} + text.shape[1] :]
print(tokenizer.decode(tokens, skip_special_tokens=True).strip())
```

`token_type_ids` must be given: without them the picture is read causally, and the answers are others. The processor of
PaliGemma's own checkpoints writes another prompt; take the lines above."""


def _way_to_ids(text_encoder: TextEncoder, prompt: str) -> str:
    """Find the lines that give the ids of training, of those that a tokenizer can be asked in."""
    wanted, tokenizer = text_encoder.prompts([prompt]).input_ids, text_encoder.tokenizer
    turns = [{"role": "user", "content": prompt}]
    options: dict[str, Tensor] = {}
    if text_encoder.chat_template is not None:
        asked: Any = tokenizer.apply_chat_template(
            turns, chat_template=text_encoder.chat_template, tokenize=False, add_generation_prompt=True
        )
        talk = (
            'turns = [{"role": "user", "content": prompt}]\n'
            "prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)\n"
        )
        for strip in ("", ".rstrip(' ')"):
            line = f'{talk}text = tokenizer(prompt{strip}, add_special_tokens=False, return_tensors="pt")["input_ids"]'
            text = asked.rstrip(" ") if strip else asked
            options[line] = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    for line, special in ((', return_tensors="pt"', True), (', add_special_tokens=False, return_tensors="pt"', False)):
        stripped = tokenizer(prompt.rstrip(), add_special_tokens=special, return_tensors="pt")["input_ids"]
        options[f'text = tokenizer(prompt.rstrip(){line})["input_ids"]'] = stripped
    same = [line for line, ids in options.items() if torch.equal(ids, wanted)]
    if same:
        return same[0]
    begin = wanted[0, : max(wanted.shape[1] - stripped.shape[1], 0)].tolist()
    return (
        "# as near as this tokenizer comes to the prompts of training: some of their ids may differ\n"
        f'text = torch.tensor([{begin} + tokenizer(prompt.rstrip(), add_special_tokens=False)["input_ids"]])'
    )


def _front_matter(library: str, sources: Mapping[str, str]) -> str:
    bases = [name for part, name in sources.items() if part != "folder" and _is_repository(name)]
    lines = [f"library_name: {library}", "pipeline_tag: image-text-to-text", "tags: [git-llm]"]
    if bases:
        lines += ["base_model:", *(f"- {name}" for name in bases)]
    return "\n".join(["---", *lines, "---", ""])


def _is_repository(name: str) -> bool:
    return _REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def _shown(name: str) -> str:
    """Give a name as others may know it: of a path on this machine the last part alone."""
    return name if _is_repository(name) or name.startswith("tiny:") else Path(name).name


def _parts(model: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[str]:
    yield "| | |\n| --- | --- |"
    for part, name in sources.items():
        yield f"| {part.replace('_', ' ')} | `{_shown(name)}` |"
    if "folder" not in sources:
        yield f"| projection | `{model.get('projection', 'linear_norm')}` |"
        yield f"| pictures of a question | up to {model.get('max_images', 1)} |"
    trained = model.get("trainable", "proj+lora")
    yield f"| trained | `{trained if isinstance(trained, str) else ', '.join(trained)}` |"
    if model.get("lora"):
        yield f"| LoRA | rank {model['lora'].get('rank', 8)}, alpha {model['lora'].get('alpha', 16)} |"


def _licences(sources: Mapping[str, str]) -> str:
    """Say the licences that the parts' own cards say, where those are on this machine."""
    found = {}
    for name in sources.values():
        card = Path(name).expanduser() / CARD
        said = _LICENSE.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
        found[_shown(name)] = said.group(1).strip() if said else "not known here; see where it came from"
    listed = "; ".join(f"`{name}`: {licence}" for name, licence in found.items())
    return f"Licences of the parts bind what is made of them: {listed}."


def _data(config: Mapping[str, Any]) -> Iterator[str]:
    for name, node in (config.get("datasets") or {}).items():
        info = node.get("build_info") or {}
        yield f"- `{name}`" + (f" ({', '.join(files)})" if (files := sorted(set(_files(info)))) else "")
        configs = info.get("configs")
        for each in [configs] if isinstance(configs, str) else configs or []:
            licence = f": {BY_NAME[each].licence}" if each in BY_NAME else ""
            yield f"  - `{each}`{licence}"
    run = config.get("run") or {}
    length = {key: run[key] for key in ("max_epoch", "max_iters", "max_steps", "batch_size_train") if run.get(key)}
    yield "\n" + ", ".join(f"`{key}` {value}" for key, value in length.items()) + f", seed {run.get('seed', 42)}."


def _files(info: Mapping[str, Any]) -> Iterator[str]:
    """Give the names of files, without folders, which say something of this machine alone."""
    for split, node in (info.get("annotations") or {}).items():
        storage = node.get("storage") if isinstance(node, Mapping) else None
        for path in [storage] if isinstance(storage, str) else storage or []:
            yield f"{split}: {Path(str(path)).name}"


def _picture(folder: Path, checkpoint: Path) -> Iterator[str]:
    """Bring the run's loss curve along; pictures of the data, which may be nobody else's business, stay behind."""
    drawn = run_folder_of(checkpoint) / LOSS_CURVE
    if drawn.is_file():
        shutil.copyfile(drawn, folder / LOSS_CURVE)
        yield f"\n![The loss of the training]({LOSS_CURVE})"


def _is_number(value: Any) -> bool:
    # JSON has numbers without bounds, which cannot be shown as one of Python's floats.
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _scores(checkpoint: Path) -> Iterator[str]:
    """Give a table of a run's last evaluations of each split."""
    rows = []
    for file in sorted(run_folder_of(checkpoint).glob("*_metrics.json")):
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(metrics, Mapping):
            scores = {k: v for k, v in metrics.items() if _is_number(v) and k not in _COUNTS}
            told = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
            split = metrics.get("split", file.name.removesuffix("_metrics.json"))
            rows.append(f"| {split} | {metrics.get('epoch', '')} | {metrics.get('num_examples', '')} | {told} |")
    if not rows:
        yield "The run evaluated nothing."
        return
    which = "the best that the run evaluated" if checkpoint.name == BEST else f"`{checkpoint.name}`"
    yield f"As the run measured them; scores are in percent. These weights are {which}.\n"
    yield "| split | weights of epoch | examples | scores |\n| --- | --- | --- | --- |"
    yield from rows
