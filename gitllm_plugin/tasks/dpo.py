"""Task ``git_llm_dpo``: learning to prefer one answer to another, by direct preference optimization."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from lavis.common.registry import registry

from gitllm_plugin.common import ranks
from gitllm_plugin.common.checksums import sum_of_weights
from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.config import read
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling.preference import Pairs, Reference, preference_loss, stop_dropout
from gitllm_plugin.protocols import DrawnModel, PairModel, offers
from gitllm_plugin.tasks.m3it import M3ITTask
from gitllm_plugin.tasks.settings import PreferenceSettings

REFERENCE = "reference.json"
"""File of a run's folder that says which weights its reference has."""


@registry.register_task("git_llm_dpo")
class PreferenceTask(M3ITTask):
    """Trains on pairs of answers, ``text_output`` that is chosen and ``text_rejected``, and evaluates by them.

    The reference is the model as the run began with it, adapters included: a copy of what is trained is kept. In
    evaluation answers are generated and scored too where ``run.metrics`` names some.

    Args:
        settings: what the ``run`` node says, or its defaults.
    """

    Settings = PreferenceSettings

    def __init__(self, settings: PreferenceSettings | None = None) -> None:
        settings = settings or PreferenceSettings()
        super().__init__(settings)  # pyright: ignore[reportCallIssue] - of a registered class
        self.beta, self.label_smoothing = settings.beta, settings.label_smoothing
        self._model: Any = None
        self._reference: Reference | None = None
        self._is_checked = False
        self._takes_untrained = False

    @classmethod
    def setup_task(cls, cfg: Any) -> "PreferenceTask":
        """Build the task from ``cfg.run_cfg``.

        Raises:
            ConfigError: naming everything that is wrong of what the task reads; or the model is to be spread.
        """
        sharding = cfg.run_cfg.get("sharding", "none")
        if sharding != "none":
            raise ConfigError(
                f"run.sharding is {sharding!r}: the task git_llm_dpo keeps a copy of whole weights; set none"
            )
        task: Any = cls(read(cls.Settings, "run", cfg.run_cfg, closed=False))
        task._takes_untrained = bool(cfg.run_cfg.get("allow_untrained"))
        return task

    def use_model(self, model: Any) -> None:
        """Keep the weights that training begins with, and let nothing be dropped.

        Raises:
            ConfigError: the model reads no pairs, or is untrained.
        """
        if not offers(model, PairModel):
            raise ConfigError(
                f"run.task is git_llm_dpo, which compares two answers to one prompt: {type(model).__name__} does not "
                "(PairModel of gitllm_plugin.protocols); use model.arch: git_llm"
            )
        random = model.untrained() if offers(model, DrawnModel) else []
        if random and not self._takes_untrained:
            raise ConfigError(
                "run.task is git_llm_dpo, which goes on from a trained model; of this one are random: "
                f"{', '.join(random)}. Name one by model.folder, or a run's checkpoint by model.finetuned with "
                "model.load_finetuned: true (run.allow_untrained: true lets it be)"
            )
        stop_dropout(cast(Any, model))
        # What is drawn at random is the first rank's, as in the model that they share from here on.
        self._model, self._reference = model, ranks.broadcast_object(Reference(cast(Any, model)))

    def train_outputs(self, model: Any, samples: dict[str, Any]) -> dict[str, Any]:
        """Compute ``loss``, the mean over pairs, with ``supervised_weight``, their number, and ``logged``."""
        if _bare(model) is self._model and not self._is_checked:
            self._check_reference()
        return self._outputs(model, samples)

    def valid_outputs(self, model: Any, samples: dict[str, Any]) -> Mapping[str, Any]:
        """Compute the same of a batch of an evaluation."""
        return self._outputs(model, samples)

    def evaluating(self, model: Any) -> AbstractContextManager[None]:
        """Give the context of an evaluation: weights into which an adapter is merged would be those of no reference."""
        return nullcontext()

    def _outputs(self, model: Any, samples: dict[str, Any]) -> dict[str, Any]:
        _check_pairs(samples)
        bare = _bare(model)
        # A copy of the model, of which a run's memory and time are foretold, has not been trained.
        reference = self._reference if bare is self._model else Reference(bare)
        assert reference is not None
        reference = reference.ask(bare, samples, pairs=True)
        policy = model(samples, pairs=True)
        loss, numbers = preference_loss(_pairs(policy), _pairs(reference), self.beta, self.label_smoothing)
        return {
            "loss": loss,
            "num_supervised_tokens": policy["num_supervised_tokens"],
            "supervised_weight": float(len(samples["text_rejected"])),
            "logged": numbers,
        }

    def _check_reference(self) -> None:
        """Note which weights the run began with.

        Raises:
            ConfigError: on all ranks, the run that is resumed began with others.
        """
        self._is_checked = True
        folder = registry.get_path("output_dir")
        assert self._reference is not None
        weights = {name: value.cpu() for name, value in self._reference.state_dict().items()}
        own = {"weights": sum_of_weights(weights)}
        if folder is not None:
            ranks.from_first_rank(lambda: _note_reference(Path(str(folder)) / REFERENCE, own))


def _note_reference(path: Path, own: dict[str, str]) -> None:
    if not path.is_file():
        return write_atomically(path, json.dumps(own) + "\n")
    if (found := json.loads(path.read_bytes())) != own:
        raise ConfigError(
            f"{path}: the run began with other weights ({found.get('weights')}) than those that model.folder or "
            f"model.finetuned gives now ({own['weights']}), and rewards are relative to them; put the files back, or "
            "start a new run"
        )


def _check_pairs(samples: Mapping[str, Any]) -> None:
    """Refuse a batch with a text that nothing is preferred to."""
    rejected = samples.get("text_rejected", [None] * len(samples["text_input"]))
    missing = [place for place, text in enumerate(rejected) if text is None]
    if missing:
        names = samples.get("instance_id", list(range(len(rejected))))
        raise DataError(
            f"example {names[missing[0]]!r} has no rejected answer, and {len(missing)} of {len(rejected)} texts in its "
            "batch have none; give each row a 'rejected' beside its 'outputs', or train with run.task: m3it"
        )


def _bare(model: Any) -> Any:
    """Give the model that ranks exchange gradients of."""
    return getattr(model, "module", model)


def _pairs(found: Mapping[str, Any]) -> Pairs:
    return Pairs(found["chosen"], found["rejected"])
