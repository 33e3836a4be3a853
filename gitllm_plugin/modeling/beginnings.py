"""What texts about one image have in common at their beginnings: its states are the same, and are computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gitllm_plugin.modeling.transfer import to_host


@dataclass(frozen=True)
class Beginnings:
    """Texts that begin as others about the same image do.

    Attributes:
        of: ``[N]``, the text that each begins alike with, which borrows nothing; itself for none.
        tokens: ``[N]``, how many tokens they have in common; 0 for none.
    """

    of: np.ndarray[Any, np.dtype[Any]]
    tokens: np.ndarray[Any, np.dtype[Any]]

    @classmethod
    def none(cls, count: int) -> Beginnings:
        """Let each of so many texts stand for itself."""
        return cls(np.arange(count), np.zeros(count, np.int64))


def same_beginnings(input_ids: Tensor, text_valid: Tensor, like: Tensor) -> Beginnings:
    """Find what texts have in common with others, on the host.

    Args:
        input_ids: long ``[N, T]``, padded on either side.
        text_valid: ``[N, T]``, 1 on real tokens.
        like: long ``[N]``, the text that each is compared with; itself for none.
    """
    input_ids, text_valid, like = to_host(input_ids, text_valid, like)
    of, valid = like.numpy(), text_valid.numpy().astype(bool)
    assert (of[of] == of).all(), "a text that lends borrows nothing"
    # Real tokens first, on whichever side the padding is.
    order = np.argsort(~valid, axis=1, kind="stable")
    ids = np.where(np.take_along_axis(valid, order, 1), np.take_along_axis(input_ids.numpy(), order, 1), -1)
    same = (ids == ids[of]) & (ids >= 0)
    return Beginnings(of, np.cumprod(same, axis=1).sum(1) * (of != np.arange(len(of))))
