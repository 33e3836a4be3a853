"""What a model, a data set, a stream and a task may offer the runner, beyond what LAVIS asks of them.

All of it is optional: LAVIS's own models, data sets and tasks offer none of it, and train all the same. Whoever offers
one method of a protocol offers all of it, which :func:`offers` sees to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import nn

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.members import has_member, listed, members

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs


class TextRule(Protocol):
    """What tells which texts a model cannot read; can be pickled."""

    def bytes_that_fit(self, images: int) -> int:
        """Give so many bytes of instruction and answer as surely fit beside so many images."""
        ...

    def fault(self, prompt: str, answer: str, question: str, images: int) -> str | None:
        """Say why a text does not fit however short its question; None where it does."""
        ...

    def marks_fault(self, prompt: str, pictures: int) -> str | None:
        """Say why so many pictures do not stand in a prompt as it says; None where they do."""
        ...


class LayeredModel(Protocol):
    """A model whose layers are compiled, and spread over ranks (``run.sharding: fsdp``), one at a time."""

    def blocks(self) -> list[nn.Module]:
        """Give the layers that every batch runs through, first to last; without it the model is one whole."""
        ...


class CheckpointedModel(Protocol):
    """A model that can keep few activations and compute its layers again in the backward pass."""

    def use_checkpointing(self, on: bool) -> None:
        """Keep few activations from now on, or all of them; a :class:`ConfigError` where a part of it cannot."""
        ...


class GroupedModel(Protocol):
    """A model that decides which of its parameters learn how fast."""

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Give torch's parameter groups (``params``, ``weight_decay``), where ``lr_scale`` is a factor on the rate.

        Without it matrices decay, vectors do not, and all learn alike. ``weight_decay`` is that of ``run``.
        """
        ...


class SelectiveModel(Protocol):
    """A model that decides what of it a checkpoint holds."""

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Give the weights that training changes, by name; without it, all that are not frozen."""
        ...

    def load_trainable_state_dict(self, state: dict[str, Tensor], source: str) -> None:
        """Check and load what the other method gave; ``source`` names the file in a :class:`ConfigError`."""
        ...


class MergingModel(Protocol):
    """A model that answers faster when it knows that nothing is trained in between."""

    def inference(self) -> AbstractContextManager[None]:
        """Give the context that a whole evaluation runs in; behind it the weights are bit for bit those before."""
        ...


class DrawnModel(Protocol):
    """A model of which some is drawn at random, and worth nothing before it is loaded or trained."""

    def untrained(self) -> list[str]:
        """Name what is random still, empty for none; an evaluation of it is refused but for ``run.allow_untrained``."""
        ...


class FittingModel(Protocol):
    """A model whose context may be too short for a text."""

    def text_rule(self, image: Any, answers: bool, new_tokens: int) -> TextRule | None:
        """Give the rule for texts beside such images, None where all fit.

        ``image`` is one of an item, None for none; ``answers`` is whether they are read too, as a loss does;
        ``new_tokens`` is how many more may be generated.
        """
        ...


class FingerprintedModel(Protocol):
    """A model that takes features of images, computed before, in the place of pixels."""

    def encoder_fingerprint(self) -> str:
        """Say what features have to be made by; a :class:`ConfigError` where the image encoder is trained."""
        ...


class TokenCountingModel(Protocol):
    """A model that counts what it reads of a batch, for ``run.tokens_per_batch``."""

    def count_tokens(self, samples: dict[str, Any]) -> int:
        """Count a batch's tokens as training reads them: those of each image once, and those of each text."""
        ...


class SizedImagesModel(Protocol):
    """A model that takes images of some sizes only."""

    def check_image_size(self, height: int, width: int) -> None:
        """Refuse, by a :class:`ConfigError` that names both sizes, images that it does not take; before training."""
        ...


class HostReadingModel(Protocol):
    """A model that reads some of a batch on the host, to find out who stands where without waiting for the device."""

    def host_keys(self) -> Sequence[str]:
        """Name these entries: they come to the model as lists of numbers, and all other tensors on the device."""
        ...


class PairModel(Protocol):
    """A model that learns preferences: ``forward(samples, pairs=True)`` gives what this method does."""

    def pair_log_likelihoods(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Give ``chosen`` and ``rejected``, float ``[N]``, of the answers ``text_output`` and ``text_rejected``.

        Each is the sum of the log-probabilities of an answer's tokens, ``num_supervised_tokens`` in all.
        """
        ...


class ClassNamingModel(Protocol):
    """A model that writes the names of classes, which the task ``multimodal_classification`` tells it."""

    def name_classes(self, dataset: Any) -> None:
        """Take what a split calls its classes (LAVIS's ``classnames`` or ``class_labels``); before training."""
        ...


class TextsEncoder(Protocol):
    """A model's ``text_encoder`` whose tokens ``gitllm train --dry-run`` shows."""

    tokenizer: Any

    def prompts_and_answers(self, prompts: list[str], answers: list[str], **settings: Any) -> Any:
        """Give ``input_ids``, ``attention_mask`` and ``labels``, each long ``[N, T]``; -100 is not learnt."""
        ...


class CollatingData(Protocol):
    """A data set that makes its own batches."""

    def collater(self, items: list[Any]) -> dict[str, Any]:
        """Make a batch of items; without it torch's ``default_collate`` does."""
        ...


class CountedData(Protocol):
    """A split that knows how many examples an evaluation of it has."""

    @property
    def num_examples(self) -> int:
        """Of all ranks together; the task ``m3it`` warns where so many were not evaluated."""
        ...


class NumberedData(Protocol):
    """A split whose examples can be looked up, for the task ``m3it``'s page of pictures."""

    @property
    def examples(self) -> Any:
        """A sequence of groups of one text (:mod:`gitllm_plugin.m3it.group`), with ``place_of(number)`` for errors."""
        ...


class FingerprintedData(Protocol):
    """A split that tells whether it is the one that a run was trained on, which ``resume_ckpt_path: auto`` asks."""

    def fingerprint(self) -> str:
        """Sum up the contents in some words; without it, the number of items does."""
        ...


class ModelReadingData(Protocol):
    """A data set whose items depend on the model, as features of images do."""

    def use_model(self, model: Any) -> None:
        """Look at the model; called once, before it is moved, wrapped or spread over ranks."""
        ...


class FittedData(Protocol):
    """A data set, or a stream, that can tell, and leave out, texts that the model cannot read."""

    def use_text_rule(self, rule_of: Callable[[Any], TextRule | None]) -> None:
        """Look for such texts before they are read; ``rule_of`` takes one of the items' images, or None for none."""
        ...


class BatchingStream(Protocol):
    """A stream that deals whole batches to worker processes, so that their number changes nothing."""

    def set_batch_size(self, batch_size: int) -> None:
        """Learn how many items a loader takes for a batch of one rank; called before its workers start."""
        ...


class SharedStream(Protocol):
    """A stream that can be evaluated on by all ranks together, or by each alone."""

    def set_shared(self, shared: bool) -> None:
        """Give each rank its share of the split (as without this call), or the whole of it to every rank."""
        ...


class EndlessStream(Protocol):
    """A stream that says whether it ends: one without an end is refused where it would be evaluated on."""

    @property
    def endless(self) -> bool:
        """Whether it gives items for ever, as the training data of a run may."""
        ...


class CountingStream(Protocol):
    """A stream that wants to know what was trained on: worker processes read ahead."""

    def note_batch(self, batch: dict[str, Any]) -> None:
        """Learn that a batch is trained on now; called on every rank for its own batches, in their order."""
        ...


class ResumableStream(Protocol):
    """A stream with a place to go on from; without it a resumed run reads from the beginning, with a warning."""

    def state_dict(self) -> Any:
        """Give this rank's place as plain values and tensors; called when a checkpoint is written."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Go on there; called before a loader's iterator is made, where the number of ranks is the same."""
        ...


class RescalableStream(ResumableStream, Protocol):
    """A resumable stream that also goes on with another number of ranks."""

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Go on from the places of all ranks that there were, in their order."""
        ...


class NumberedStream(ResumableStream, Protocol):
    """An endless stream of items that have positions, for ``run.tokens_per_batch``; ``len()`` is of a rank's pass."""

    def items_at(self, positions: Sequence[int]) -> list[Any]:
        """Read some of the items, as often as they are asked for."""
        ...

    def start_at(self, position: int) -> None:
        """Begin there: rank r of W gives the items at ``position`` + r, ``position`` + r + W and so on."""
        ...


class HostStream(BatchingStream, Protocol):
    """A stream for LAVIS's own runners, which keep no state of their data; the runner ``git_llm`` does not ask."""

    def skip_batches(self, number: int) -> None:
        """Go on as after so many batches of this rank; called after ``set_batch_size``."""
        ...


class CountingTask(Protocol):
    """A task that counts what it trains on, so that every token weighs the same in whatever batch or rank it is."""

    def train_outputs(self, model: nn.Module, samples: dict[str, Any]) -> Mapping[str, Any]:
        """Give ``loss``, a scalar, the mean over ``num_supervised_tokens``; in the place of LAVIS's ``train_step``.

        A mean of tokens that weigh differently comes with ``supervised_weight``, the sum of their weights; further
        means by the same weights, scalars on the device that are to be logged, as a mapping ``logged``.
        """
        ...


class ModelReadingTask(Protocol):
    """A task that has to know the model as it is before it is trained."""

    def use_model(self, model: Any) -> None:
        """Look at the model; called once, before it is moved, wrapped or spread, and before a run is resumed."""
        ...


class ReadingTask(Protocol):
    """A task that says what its evaluations let the model read."""

    def evaluation_reads(self) -> tuple[bool, int]:
        """Say whether answers are read, as for a loss, and how many tokens may be generated; 0 for none."""
        ...


def weight_of_loss(outputs: Mapping[str, Any]) -> float:
    """Say what to multiply a batch's mean loss with before it is added to those of others: what it was divided by.

    That is ``supervised_weight`` of a model's outputs, else ``num_supervised_tokens``, else 1: each weighs the same.
    """
    return float(outputs.get("supervised_weight", outputs.get("num_supervised_tokens", 1)))


PROTOCOLS: dict[str, tuple[type, ...]] = {
    "model": (
        LayeredModel,
        CheckpointedModel,
        GroupedModel,
        SelectiveModel,
        MergingModel,
        DrawnModel,
        FittingModel,
        FingerprintedModel,
        SizedImagesModel,
        HostReadingModel,
        PairModel,
        ClassNamingModel,
        TokenCountingModel,
    ),
    "text encoder": (TextsEncoder,),
    "data set": (CollatingData, CountedData, NumberedData, FingerprintedData, ModelReadingData, FittedData),
    "stream": (
        BatchingStream,
        SharedStream,
        EndlessStream,
        CountingStream,
        ResumableStream,
        RescalableStream,
        NumberedStream,
        HostStream,
    ),
    "task": (CountingTask, ModelReadingTask, ReadingTask),
}
"""All protocols, by what they are about."""

Offered = TypeVar("Offered")


def offers(thing: Any, protocol: type[Offered]) -> TypeIs[Offered]:
    """Tell whether an object offers all of a protocol.

    Unlike ``isinstance``, it refuses half of one (of :data:`PROTOCOLS`), and takes no attribute (such as the ``blocks``
    of a vision transformer, a list of modules) for a method.

    Returns:
        False where it has nothing of what the protocol adds to those it extends. Plain attributes, which many
        classes have by chance, are asked for only beside a method.

    Raises:
        ConfigError: it has some of it and not all; the message names the class, what it has and what is missing.
    """
    needed = members(protocol)
    has = [name for name in needed if has_member(thing, name, needed[name])]
    own = [name for name in has if name in vars(protocol)]
    if not own:
        return False
    if missing := [name for name in needed if name not in has]:
        raise ConfigError(
            f"{type(thing).__name__} has {listed(own, needed)}, but not {listed(missing, needed)}: a "
            f"{protocol.__name__} (gitllm_plugin.protocols) has all of them; add what is missing, or take the rest away"
        )
    return True


def check_offers(thing: Any, *kinds: str) -> None:
    """Refuse an object that offers half of a protocol.

    Its kinds are keys of :data:`PROTOCOLS`.

    Raises:
        ConfigError: see :func:`offers`.
    """
    for kind in kinds:
        for protocol in PROTOCOLS[kind]:
            # One member is no half of anything, and looking for it may compute a property.
            if len(members(protocol)) > 1:
                offers(thing, protocol)
