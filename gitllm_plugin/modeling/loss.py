"""What is learnt of a batch: the supervised tokens, as indices that the host knows, and the loss at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gitllm_plugin.modeling.layout import Layout
from gitllm_plugin.modeling.tokens import IGNORED
from gitllm_plugin.modeling.transfer import to_host


@dataclass
class GitLLMOutput:
    """What scoring texts gives.

    Attributes:
        loss: mean cross-entropy over supervised tokens, float32 scalar; None without labels.
        logits: ``[N, T, V]`` at the text positions, zeros on padding; None with ``logits="none"``.
        num_supervised_tokens: how many tokens the loss is the mean of.
        supervised_weight: the sum of their weights, by which the loss was divided; their number where all weigh the
            same. Times it, losses of batches add up.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    num_supervised_tokens: int = 0
    supervised_weight: float = 0.0


@dataclass(frozen=True)
class Targets:
    """What is learnt: the slots whose logits are trained, in their order.

    Attributes:
        slots: long ``[n]``, counted through all rows.
        tokens: long ``[n]``, the tokens that are to be predicted there.
        weights: float ``[n]``, how much each counts in the loss; None: all the same.
        weight: the sum of the weights, or n.
        divisor: the same as a float scalar, 1 in the place of 0: a number of Python's would be a constant of a graph.
    """

    slots: Tensor
    tokens: Tensor
    weights: Tensor | None
    weight: float
    divisor: Tensor


def targets_of(labels: Tensor, weights: Tensor | None = None, layout: Layout | None = None) -> Targets:
    """Find the slots whose logits are trained, on the host.

    Args:
        labels: long ``[N, T]``, token ids in the caller's layout, ``-100`` where a token is not trained on.
        weights: ``[N]``, how much each text's tokens count, none below 0; None: all the same.
        layout: where the texts stand; None: as in ``labels``, with nothing around them.
    """
    labels, weights = to_host(labels, weights)
    # Token t is predicted at token t - 1 of its own text.
    following = np.full(labels.shape, IGNORED)
    following[:, :-1] = labels.numpy()[:, 1:]
    following = following.reshape(-1)
    if layout is None:
        places = slots = np.arange(following.size)
    else:
        slots = layout.text_slots if layout.predicting_slots is None else layout.predicting_slots
        places, slots = layout.text_places.numpy(), slots.numpy()
    trained = (following[places] != IGNORED).nonzero()[0]
    trained = trained[slots[trained].argsort()]
    tokens, found = torch.from_numpy(following[places[trained]]), torch.from_numpy(slots[trained])
    if weights is None:
        return Targets(found, tokens, None, float(len(tokens)), torch.tensor(max(len(tokens), 1), dtype=torch.float32))
    of_tokens = weights[torch.from_numpy(places[trained] // labels.shape[1])]
    of_tokens = of_tokens.to(torch.promote_types(of_tokens.dtype, torch.float32))
    weight = of_tokens.sum().item()
    return Targets(found, tokens, of_tokens, weight, torch.tensor(weight or 1.0, dtype=of_tokens.dtype))


def prompt_lengths_of(labels: Tensor, text_valid: Tensor) -> Tensor:
    """Count the tokens of each text in front of the first that is trained on; all where none is.

    Args:
        labels: as for :func:`targets_of`, on the host.
        text_valid: ``[N, T]``, which tokens are real.

    Returns:
        long ``[N]``.
    """
    before = ((labels != IGNORED).cumsum(1) == 0) & text_valid.bool()
    return before.sum(1)


def mean_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, divisor: Tensor) -> Tensor:
    """Compute the mean cross-entropy of tokens, in float32 or more; 0 where there is none.

    Args:
        logits: ``[n, V]``.
        targets: long ``[n]``.
        weights: ``[n]``, none below 0, for a weighted mean; None: all the same.
        divisor: scalar, see :class:`Targets`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum") / divisor.to(logits.dtype)
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights.to(losses.dtype)).sum() / divisor.to(losses.dtype)
