"""Random numbers that depend on where in a run they are drawn, not on what was drawn before."""

import random

import numpy as np
import torch


def seed_everything(*position: int) -> None:
    """Seed Python, NumPy and torch from a position such as `(seed, rank, epoch, iteration)`.

    Each epoch is seeded afresh, so a run resumed at an epoch draws what the uninterrupted run drew, on every
    rank and with any number of ranks, without generator states in the checkpoint.
    """
    seed = int(np.random.SeedSequence(position).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
