"""Every registered model tried in this environment, and the table of what came of it.

``python -m tests.lavis_models.trial`` writes the table into docs/lavis.md.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed

import gitllm_plugin
from gitllm_plugin.host.locate import locate
from tests.lavis_models import folders, make_reference, recipes, sizes

PAGE = Path(__file__).parents[2] / "docs" / "lavis.md"
BEGIN, END = "<!-- models: python -m tests.lavis_models.trial -->\n", "<!-- end of models -->\n"
TOLERANCE = 1e-5
OF_GRADIENTS = 1e-4
# Biases of keys have no gradient but rounding: how many parameters change is the machine's.
NOT_COMPARED = {"changed"}
# Beams that end elsewhere: 4.26 divides a beam's likelihood by the length with the prompt, today's without.
OTHER_BEAMS = {("blip_vqa", "answers_generated")}
ON_MAIN = locate().variant == "git main"
# Git main has another CLIP encoder.
OTHER_ON_MAIN = {"blip2_feature_extractor"}
# Needs diffusers, and Stable Diffusion's weights.
NOT_TRIED = {"blip_diffusion"}


@dataclasses.dataclass
class Outcome:
    """What came of one model.

    Attributes:
        result: as :func:`~tests.lavis_models.make_reference.reference` gives it, as far as it came.
        asked: what it was asked.
        why_not: why it could not be made, or trained; empty where it could, or LAVIS trains none.
        differing: where numbers are not those of the old environment.
        compared: whether there are such.
    """

    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    asked: list[str] = dataclasses.field(default_factory=list)
    why_not: str = ""
    differing: list[str] = dataclasses.field(default_factory=list)
    compared: bool = False


def registered() -> list[str]:
    """List what LAVIS and this package register; what a test registers is neither's."""
    gitllm_plugin.register()
    from lavis.common.registry import registry

    return [
        name
        for name in registry.list_models()
        if registry.get_model_class(name).__module__.startswith(("lavis.", "gitllm_plugin."))
    ]


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """While entered, work is done in a folder with all that the recipes need, and LAVIS's sizes are tiny."""
    gitllm_plugin.register()
    before, threads = os.getcwd(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch, sizes.tiny(), contextlib.redirect_stdout(io.StringIO()):
        os.chdir(scratch)
        torch.set_num_threads(1)  # sums are of the reference's order
        try:
            folders.write_all(Path(scratch))
            torch.save({"model": {}}, "nothing.pth")
            yield Path(scratch)
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """While entered, this process is a group of one, as the reference's was: LAVIS's losses ask for it."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def try_all() -> dict[str, Outcome]:
    """Try every registered model."""
    outcomes = {}
    with workshop() as folder, process_group(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sorted({*registered()} - NOT_TRIED):
            outcomes[name] = _try_ours(name, folder) if name in ("git", "git_llm") else try_one(name, folder)
    return outcomes


def try_one(name: str, folder: Path) -> Outcome:
    """Build, ask and train one model of LAVIS's, and compare what came out."""
    outcome = Outcome()
    recipe = recipes.recipe_of(name)
    if recipe.needs and importlib.util.find_spec(recipe.needs) is None:
        try:
            recipes.build(name, folder)
        except ImportError as error:
            outcome.why_not = str(error)
        return outcome
    outcome.result = make_reference.reference(name, folder)
    outcome.asked = list(recipe.uses)
    known = json.loads(make_reference.REFERENCE.read_text())["models"].get(name)
    if known is not None and not (ON_MAIN and name in OTHER_ON_MAIN):
        outcome.compared = True
        outcome.differing = [place for place in differences(outcome.result, known) if not _of_other_beams(name, place)]
    return outcome


def _of_other_beams(name: str, place: str) -> bool:
    return any(name == model and place.startswith(f".used.{what}") for model, what in OTHER_BEAMS)


def _try_ours(name: str, folder: Path) -> Outcome:
    from lavis.common.registry import registry
    from omegaconf import OmegaConf

    from tests.tiny_git import make_checkpoint

    kind = registry.get_model_class(name)
    torch.manual_seed(0)
    if name == "git":
        (folder / "tiny-git").mkdir()
        model = kind.from_config(OmegaConf.create({"weights": str(make_checkpoint(folder / "tiny-git"))}))
    else:
        model = kind.from_config(OmegaConf.load(kind.default_config_path("tiny_llama")).model)
    batch = {"image": recipes.pictures(), "text_input": ["what color is it?"] * 2, "text_output": ["red", "two"]}
    uses = {
        "captions": lambda: model.generate({"image": batch["image"], "text_input": batch["text_input"]}),
        "answers_generated": lambda: model.predict_answers(dict(batch), max_len=3),
        "answers_ranked": lambda: model.predict_answers(
            dict(batch), answer_list=recipes.ANSWERS, inference_method="rank"
        ),
    }
    used = {what: recipes.brief(ask()) for what, ask in uses.items()}
    loss = model.train()(batch)["loss"]
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in trained]
    torch.optim.SGD(trained, lr=0.1).step()
    changed = sum(not torch.equal(*pair) for pair in zip(before, trained, strict=True))
    return Outcome({"used": used, "trained": {"loss": float(loss), "changed": changed}}, list(uses))


def differences(found: Any, known: Any, place: str = "") -> list[str]:
    """List where two results differ: numbers by more than the tolerance, relative where they are large."""
    if isinstance(known, Mapping):
        keys = sorted((set(known) & set(found)) - NOT_COMPARED)
        return [each for key in keys for each in differences(found[key], known[key], f"{place}.{key}")]
    if isinstance(known, list):
        if len(known) != len(found):
            return [f"{place}: {len(found)} for {len(known)}"]
        pairs = enumerate(zip(found, known, strict=True))
        return [each for i, pair in pairs for each in differences(*pair, f"{place}[{i}]")]
    tolerance = OF_GRADIENTS if place.endswith(".gradients") else TOLERANCE
    same = math.isclose(found, known, rel_tol=tolerance, abs_tol=tolerance) if isinstance(known, float) else None
    return [] if same or (same is None and found == known) else [f"{place}: {found!r} for {known!r}"]


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Give what came of all models as a table of the documentation."""
    rows = ["| model | built | trained | asked for | numbers of 4.26 |", "| --- | --- | --- | --- | --- |"]
    for name, outcome in outcomes.items():
        if outcome.why_not:
            rows.append(f"| `{name}` | needs `{recipes.recipe_of(name).needs}` | | | |")
            continue
        trained = "yes" if "trained" in outcome.result else "LAVIS trains none"
        asked = _listed(outcome.asked) or "its loss alone"
        numbers = "" if not outcome.compared else "differ" if outcome.differing else "equal"
        rows.append(f"| `{name}` | yes | {trained} | {asked} | {numbers} |")
    return "\n".join(rows) + "\n"


def _listed(asked: list[str]) -> str:
    """Give ``captions_beams, captions_greedy, ranked`` as captions (beams, greedy), ranked."""
    ways: dict[str, list[str]] = {}
    for what in asked:
        kind, _, way = what.partition("_")
        ways.setdefault(kind, []).extend([way] if way else [])
    return ", ".join(f"{kind} ({', '.join(each)})" if each else kind for kind, each in ways.items())


def main() -> None:
    """Write the table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(try_all()) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
