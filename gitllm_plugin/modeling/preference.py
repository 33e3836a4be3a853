"""Preferences: how likely two answers to one question are, and the loss by which the better one becomes likelier.

Image, prompt, and whatever else the two answers begin with stand in a batch once. DPO: Rafailov et al., 2023
(arXiv:2305.18290). The formula and the names of numbers are TRL's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gitllm_plugin.modeling.beginnings import same_beginnings
from gitllm_plugin.modeling.decoder import Decoder
from gitllm_plugin.modeling.layout import Layout
from gitllm_plugin.modeling.loss import prompt_lengths_of
from gitllm_plugin.modeling.marks import Marks
from gitllm_plugin.modeling.tokens import IGNORED
from gitllm_plugin.modeling.transfer import to_device, to_host


def log_likelihoods(
    decoder: Decoder,
    image_embeds: Tensor,
    image_valid: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    *,
    image_index: Tensor | None = None,
    like: Tensor | None = None,
    marks: Marks | None = None,
) -> Tensor:
    """Sum the log-probabilities of each text's labels.

    Args:
        decoder: the language model.
        image_embeds, image_valid: as for :meth:`~gitllm_plugin.modeling.decoder.Decoder.forward`.
        input_ids, attention_mask, labels, image_index: as for
            :meth:`~gitllm_plugin.modeling.model.GitLLM.forward`.
        like: long ``[N]``, a text about the same image that each begins alike with, which borrows nothing itself. What
            they have in common is computed once, where the decoder attends in streams. None: nothing.
        marks: where in their texts images stand; None: in front.

    Returns:
        float32 or more, ``[N]``.

    Raises:
        DataError: image and text are longer than the context.
    """
    image_valid, attention_mask, labels, image_index = to_host(image_valid, attention_mask, labels, image_index)
    beginnings = None if like is None else same_beginnings(input_ids, attention_mask, like)
    prompt_lengths = prompt_lengths_of(labels, attention_mask)
    layout = decoder.lay_out(image_valid, attention_mask, image_index, prompt_lengths, beginnings, marks)
    targets = _targets_of(labels, layout)
    layout, targets, input_ids = to_device((layout, targets, input_ids), image_embeds.device)
    with decoder.head_on(targets.slots):
        logits = decoder.read(layout, image_embeds, input_ids, use_cache=False).logits
    logits = logits.flatten(0, -2)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    found = logits[targets.rows, targets.tokens] - logits.logsumexp(-1)[targets.rows]
    return found.new_zeros(len(labels)).index_add(0, targets.texts, found)


@dataclass(frozen=True)
class _Targets:
    """What is learnt of each text.

    Attributes:
        slots: long ``[u]``, those whose logits are computed, each once, counted through all rows.
        rows, tokens, texts: long ``[n]``: in which of them a token is to be predicted, which token, and whose it is.
    """

    slots: Tensor
    rows: Tensor
    tokens: Tensor
    texts: Tensor


def _targets_of(labels: Tensor, layout: Layout) -> _Targets:
    slots, places = layout.read_at()
    # Who borrows has images in front.
    slots, places = (slots if layout.predicting_slots is None else layout.predicting_slots).numpy(), places.numpy()
    # Token t is predicted at token t - 1 of its own text.
    following = np.full(labels.shape, IGNORED)
    following[:, :-1] = labels.numpy()[:, 1:]
    tokens = following.reshape(-1)[places]
    trained = tokens != IGNORED
    unique, rows = np.unique(slots[trained], return_inverse=True)
    found = (unique, rows, tokens[trained], places[trained] // labels.shape[1])
    return _Targets(*map(torch.from_numpy, found))


@dataclass(frozen=True)
class Pairs:
    """How likely the chosen and the rejected answers of N prompts are, float ``[N]`` each."""

    chosen: Tensor
    rejected: Tensor


def preference_loss(
    policy: Pairs, reference: Pairs, beta: float, label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the mean loss of a batch, and its numbers by TRL's names.

    Args:
        policy: of the model that is trained.
        reference: of the model that it began as.
        beta: how much it costs to leave the reference.
        label_smoothing: the share of pairs that are taken to be the wrong way round (conservative DPO).

    Returns:
        The loss, a scalar, and means over pairs, scalars without gradient.
    """
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    margins = beta * (chosen - rejected)
    losses = -F.logsigmoid(margins)
    if label_smoothing:
        losses = losses * (1 - label_smoothing) - F.logsigmoid(-margins) * label_smoothing
    chosen, rejected = beta * chosen.detach(), beta * rejected.detach()
    numbers = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "rewards/margins": chosen - rejected,
        "logps/chosen": policy.chosen.detach(),
        "logps/rejected": policy.rejected.detach(),
    }
    return losses.mean(), {name: values.mean() for name, values in numbers.items()}


def stop_dropout(model: nn.Module) -> None:
    """Let a model drop nothing in training, in place: both answers, and the reference, are to be read alike."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Some decoders of transformers keep the probability alone.
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


class Reference:
    """A model as it is now, to be asked after it has been trained: a copy of what is trained, and the rest shared.

    Args:
        model: its trained parameters are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        """Give the copied weights by name."""
        return self._weights

    @torch.no_grad()
    def ask(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the weights that it had, as in evaluation and without gradient.

        Args:
            model: the one that was copied, not wrapped, with whatever weights it has by now.
            *args, **kwargs: of its ``forward``.
        """
        device = next(model.parameters()).device
        self._weights = to_device(self._weights, device)
        was_training = {module: module.training for module in model.modules()}
        model.eval()
        # What autocast keeps of a weight's cast would be taken for the policy's.
        kind = device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        try:
            with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
                return functional_call(model, self._weights, args, kwargs)
        finally:
            for module, training in was_training.items():
                module.training = training
