"""Which of thousands of candidates are worth scoring in full: those whose first token that tells them apart is likely.

Candidates are a tree. Each is scored by its tokens up to the first that no other candidate has in that place, which is
its first one for most; of ``a red circle``, ``a blue circle`` and ``yes`` it is ``red``, ``blue`` and ``yes``. A branch
of the tree is never likelier than its stem, so that only branches that may come into the list are looked at::

    behind the prompt    a 0.6                yes 0.3        a size of 1: "a" is first and not one candidate, so ask
    behind "a"           red 0.1  blue 0.5                   "a blue" 0.3, "a red" 0.06, "yes" 0.3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Branch:
    """Candidates that begin alike.

    Attributes:
        score: log-probability of what they have in common.
        depth: number of tokens of that.
        members: places of the candidates.
        ids: of the first of them.
        is_open: whether they differ further on.
    """

    score: float
    depth: int
    members: list[int]
    ids: Sequence[int]
    is_open: bool


class Continuations:
    """Log-probabilities of tokens behind beginnings of candidates; a reader counts here as into a tally.

    Attributes:
        candidates: for each prompt the beginnings, each with a token behind it that is not read.
        chosen: all of them.
    """

    def __init__(self, asked: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]]) -> None:
        self.candidates = [[[*beginning, 0] for beginning, _ in of_prompt] for of_prompt in asked]
        self.chosen = [range(len(of_prompt)) for of_prompt in asked]
        self._wanted = [tokens for of_prompt in asked for _, tokens in of_prompt]
        starts = [0]
        for of_prompt in asked:
            starts.append(starts[-1] + len(of_prompt))
        self._starts = starts
        self._found: dict[int, list[float]] = {}

    def number(self, prompt: int, candidate: int) -> int:
        """Give the number, among all prompts' beginnings, of one of a prompt."""
        return self._starts[prompt] + candidate

    def add(self, numbers: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Take what was read; see :meth:`~gitllm_plugin.modeling.ranking.Tally.add`."""
        # Of each beginning the last token counts.
        changes = torch.ones_like(numbers, dtype=torch.bool)
        changes[:-1] = numbers[1:] != numbers[:-1]
        ends, logits = numbers[changes].tolist(), logits[changes].float()
        wanted = [self._wanted[number] for number in ends]
        rows = [row for row, tokens in enumerate(wanted) for _ in tokens]
        columns = [token for tokens in wanted for token in tokens]
        scores = (logits[rows, columns] - logits.logsumexp(1)[rows]).tolist()
        for number, tokens in zip(ends, wanted, strict=True):
            self._found[number], scores = scores[: len(tokens)], scores[len(tokens) :]

    def of(self, prompt: int, place: int) -> list[float]:
        """Give what was asked for."""
        return self._found[self.number(prompt, place)]


def choose(
    candidates: Sequence[Sequence[Sequence[int]]],
    first: Tensor,
    size: int | None,
    read: Callable[[Continuations], None],
) -> list[list[int]] | None:
    """Choose ``size`` candidates of each prompt; the first of equal ones.

    Args:
        candidates: N lists of lists of token ids.
        first: float32 ``[N, V]``, log-probabilities of the token behind each prompt.
        size: None: all, which gives None.
        read: puts into its argument what the language model says behind the beginnings that it asks for.

    Returns:
        N lists of places in their order.
    """
    if size is None or size >= max(map(len, candidates)):
        return None
    branches = []
    for members, scores in zip(candidates, first, strict=True):
        everything = _Branch(0.0, 0, list(range(len(members))), members[0], True)
        branches.append(_split(everything, members, scores[_next_tokens(everything, members)].tolist()))
    while any(branch.is_open for found in branches for branch in _best(found, size)):
        asked = [[branch for branch in _best(found, size) if branch.is_open] for found in branches]
        continuations = Continuations(
            [
                [(branch.ids[: branch.depth], _next_tokens(branch, members)) for branch in of_prompt]
                for of_prompt, members in zip(asked, candidates, strict=True)
            ]
        )
        read(continuations)
        for n, of_prompt in enumerate(asked):
            divided = set(map(id, of_prompt))
            kept = [branch for branch in branches[n] if id(branch) not in divided]
            for place, branch in enumerate(of_prompt):
                kept += _split(branch, candidates[n], continuations.of(n, place))
            branches[n] = kept
    return [sorted([place for branch in _best(found, size) for place in branch.members][:size]) for found in branches]


def _best(branches: Sequence[_Branch], size: int) -> list[_Branch]:
    """The likeliest branches that hold ``size`` candidates together."""
    best, held = [], 0
    for branch in sorted(branches, key=lambda branch: (-branch.score, branch.members[0])):
        if held >= size:
            break
        best.append(branch)
        held += len(branch.members)
    return best


def _next_tokens(branch: _Branch, candidates: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that a branch goes on with, each once; a candidate that ends here has none."""
    ids = (candidates[place] for place in branch.members)
    return list(dict.fromkeys(own[branch.depth] for own in ids if len(own) > branch.depth))


def _split(branch: _Branch, candidates: Sequence[Sequence[int]], scores: Sequence[float]) -> list[_Branch]:
    """Divide a branch by its next token; ``scores`` are of :func:`_next_tokens`."""
    groups: dict[int | None, list[int]] = {}
    for place in branch.members:
        ids = candidates[place]
        groups.setdefault(ids[branch.depth] if len(ids) > branch.depth else None, []).append(place)
    score = dict(zip(_next_tokens(branch, candidates), scores, strict=True))
    found = []
    for token, members in groups.items():
        ids = candidates[members[0]]
        differ = token is not None and any(list(candidates[place]) != list(ids) for place in members[1:])
        gained = 0.0 if token is None else score[token]
        found.append(_Branch(branch.score + gained, branch.depth + 1, members, ids, differ))
    return found
