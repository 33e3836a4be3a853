"""How likely candidate answers are behind a prompt and its image, for any number of candidates.

Image and prompt are read once, and their keys and values are shared by all candidates::

    cache:    [pad | image | prompt]              one row a prompt, read once
    queries:  [candidate 0 | candidate 1 | ...]   each sees the cache and itself, in the place of the answer

Where positions are free to restart, many candidates stand in one row and nothing is copied; with ALiBi from slots each
has a row of its own, and copies of the cache.  Either way a call of the language model reads a bounded number of
tokens, so that memory does not grow with the number of candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from gitllm_plugin.errors import DataError
from gitllm_plugin.modeling.attention import PrefixRule
from gitllm_plugin.modeling.decoder import Decoder
from gitllm_plugin.modeling.layout import Layout
from gitllm_plugin.modeling.marks import Marks
from gitllm_plugin.modeling.shortlist import Continuations, choose
from gitllm_plugin.modeling.transfer import to_device

Candidates = Sequence[Sequence[int]]
"""Token ids of one prompt's candidates."""

TOKENS_AT_ONCE = 2048
"""How many tokens of candidates one call of the language model reads at most (one candidate at least)."""

TOKENS_AT_ONCE_ON_CPU = 256
"""The same on a CPU: products are as fast there, and what candidates of a row compute about each other, which the rule
then hides, grows with the square of its length."""

_COPIED_SLOTS = 8192  # cached and new, where every candidate has a copy of the cache

_PREFIX, _PADDING = -1, -2  # in the place of a candidate's number


@dataclass(frozen=True)
class CandidateScores:
    """Scores of N prompts' candidates.

    Attributes:
        log_likelihood: N tensors float32 ``[C_n]`` on the CPU: the sum over a candidate's tokens, or their mean where
            it was asked for; minus infinity for what was not in the shortlist.
        is_greedy: N tensors bool ``[C_n]``: whether greedy decoding would give the candidate.
    """

    log_likelihood: list[Tensor]
    is_greedy: list[Tensor]

    def best(self) -> list[int]:
        """Find the most likely candidate of each prompt; the first of equal ones."""
        return [int(scores.argmax()) for scores in self.log_likelihood]


class Tally:
    """Adds up scores of tokens to scores of candidates.

    Args:
        candidates: N lists of candidates.
        first: float32 ``[N, V]``, log-probabilities of the token behind each prompt.
        chosen: places of the candidates of each prompt that are scored in full; None: all.
    """

    def __init__(
        self, candidates: Sequence[Candidates], first: Tensor, chosen: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.candidates = candidates
        self.chosen = [range(len(members)) for members in candidates] if chosen is None else chosen
        starts = [0]
        for members in candidates:
            starts.append(starts[-1] + len(members))
        self.starts = starts
        first_ids = [torch.tensor([ids[0] for ids in members], device=first.device) for members in candidates]
        # float64: a long candidate adds up hundreds of numbers, and close ones are told apart by their last digits.
        self.sums = torch.cat([scores[ids] for scores, ids in zip(first, first_ids, strict=True)]).double()
        greedy = first.argmax(1)
        self.misses = torch.cat([(ids != greedy[n]).long() for n, ids in enumerate(first_ids)])

    def add(self, numbers: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count tokens.

        Args:
            numbers: long ``[n]``, which of all candidates (:meth:`number`) each token belongs to.
            logits: ``[n, V]``.
            targets: long ``[n]``, the tokens.
        """
        logits = logits.float()
        scores = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
        self.sums.index_add_(0, numbers, scores.double())
        self.misses.index_add_(0, numbers, (logits.argmax(1) != targets).long())

    def number(self, prompt: int, candidate: int) -> int:
        """Give the number, among all prompts' candidates, of one of a prompt."""
        return self.starts[prompt] + candidate

    def scores(self, mean: bool) -> CandidateScores:
        """Give what was counted."""
        log_likelihood, is_greedy = [], []
        sums, misses = self.sums.cpu(), self.misses.cpu()
        for n, members in enumerate(self.candidates):
            own = slice(self.starts[n], self.starts[n + 1])
            values = sums[own] / torch.tensor([len(ids) for ids in members]) if mean else sums[own].clone()
            left_out = torch.ones(len(members), dtype=torch.bool)
            left_out[self.chosen[n]] = False
            values[left_out] = -torch.inf
            log_likelihood.append(values.float())
            is_greedy.append((misses[own] == 0) & ~left_out)
        return CandidateScores(log_likelihood, is_greedy)


def check_candidates(candidates: Sequence[Candidates], num_prompts: int) -> None:
    """Refuse what cannot be ranked.

    Raises:
        DataError: a prompt without candidates, an empty candidate, or another number of lists than of prompts.
    """
    if len(candidates) != num_prompts:
        raise DataError(f"{len(candidates)} lists of candidates for {num_prompts} prompts; give one list a prompt")
    for n, members in enumerate(candidates):
        if not members:
            raise DataError(f"prompt {n} has no candidates to choose from; give at least one")
        if not all(members):
            raise DataError(f"a candidate of prompt {n} has no tokens; give each at least the end token")


@torch.no_grad()
def score_candidates(
    decoder: Decoder,
    image_embeds: Tensor,
    image_valid: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    candidates: Sequence[Candidates],
    *,
    image_index: Tensor | None = None,
    mean: bool = False,
    shortlist: int | None = None,
    tokens_at_once: int | None = None,
    marks: Marks | None = None,
) -> CandidateScores:
    """Compute log-likelihoods of candidates behind prompts about images; those of separate forward passes.

    Args:
        decoder: its language model in evaluation mode.
        image_embeds, image_valid, input_ids, attention_mask, image_index: N prompts, as for
            :meth:`~gitllm_plugin.modeling.decoder.Decoder.forward`, padded on either side.
        candidates: N lists of lists of token ids, end token included where it counts. Common candidates are N times
            the same list.
        mean: give the mean over a candidate's tokens instead of the sum, so that long candidates have a chance.
        shortlist: score in full only so many candidates of each prompt, see
            :mod:`~gitllm_plugin.modeling.shortlist`; None: all.
        tokens_at_once: how many tokens of candidates one call of the language model reads; None: as many as are fast
            on the device.
        marks: where in their texts images stand; None: in front.

    Raises:
        DataError: see :func:`check_candidates`; or image, prompt and candidate are longer than the context.
    """
    check_candidates(candidates, len(input_ids))
    if tokens_at_once is None:
        tokens_at_once = TOKENS_AT_ONCE_ON_CPU if image_embeds.device.type == "cpu" else TOKENS_AT_ONCE
    text_valid = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
    layout = decoder.rows(image_valid, text_valid, image_index, align="right", marks=marks)
    longest = max(len(ids) for members in candidates for ids in members)
    # The last token of a candidate is not read.
    decoder.check_fits(layout, longest - 1)
    layout, input_ids = to_device((layout, input_ids), image_embeds.device)
    cache = DynamicCache(config=decoder.language_model.config)
    prefix = decoder.read(layout, image_embeds, input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    first = prefix.logits[:, -1].float().log_softmax(-1)

    def read(tally: Tally | Continuations) -> None:
        for packs in _plan(decoder, tally, layout.attention_mask.shape[1], tokens_at_once):
            _score(decoder, layout, cache, tally, packs)

    tally = Tally(candidates, first, choose(candidates, first, shortlist, read))
    read(tally)
    return tally.scores(mean)


@dataclass(frozen=True)
class _Pack:
    """Candidates that stand in one row, behind the cache of their prompt."""

    prompt: int
    members: list[int]


def _plan(decoder: Decoder, tally: Tally | Continuations, cached: int, tokens_at_once: int) -> Iterator[list[_Pack]]:
    """Plan the rows of every call of the language model; candidates of one token are scored already."""
    by_prompt = [
        [c for c in chosen if len(tally.candidates[n][c]) > 1] for n, chosen in enumerate(tally.chosen)
    ]  # fmt: skip
    if not decoder.shares_rows:
        single = [_Pack(n, [c]) for n, members in enumerate(by_prompt) for c in members]
        # Each candidate has a copy of the cache here, which is the larger part of its memory.
        longest = max((len(tally.candidates[p.prompt][p.members[0]]) - 1 for p in single), default=1)
        size = max(1, min(tokens_at_once // longest, _COPIED_SLOTS // (cached + longest)))
        yield from (single[i : i + size] for i in range(0, len(single), size))
        return
    # One pack of each prompt stands in a call, so that the cache need not be copied.
    capacity = max(1, tokens_at_once // len(by_prompt))
    packs = [_fill(n, members, tally.candidates[n], capacity) for n, members in enumerate(by_prompt)]
    for step in range(max(map(len, packs), default=0)):
        # Prompts with few candidates are done sooner.
        yield [of_prompt[step] for of_prompt in packs if step < len(of_prompt)]


def _fill(prompt: int, members: Sequence[int], candidates: Candidates, capacity: int) -> list[_Pack]:
    """Pack candidates in their order, as many a pack as fit into ``capacity`` tokens."""
    packs, used = [], capacity
    for member in members:
        length = len(candidates[member]) - 1
        if not packs or used + length > capacity:
            packs.append(_Pack(prompt, []))
            used = 0
        packs[-1].members.append(member)
        used += length
    return packs


def _score(
    decoder: Decoder, layout: Layout, cache: Cache, tally: Tally | Continuations, packs: Sequence[_Pack]
) -> None:
    """Score some packs in one call of the language model."""
    device = layout.attention_mask.device
    prompts = torch.tensor([pack.prompt for pack in packs], device=device)
    ids, targets, orders, owners, numbers = [], [], [], [], []
    for pack in packs:
        for place, member in enumerate(pack.members):
            candidate = tally.candidates[pack.prompt][member]
            length = len(candidate) - 1
            ids.append(candidate[:-1])
            targets += candidate[1:]
            orders.append(range(length))
            owners.append([place] * length)
            numbers += [tally.number(pack.prompt, member)] * length
    counts = [len(pack.members) for pack in packs]
    owner = _pad(owners, counts, _PADDING, device)
    valid = owner != _PADDING
    cached = layout.attention_mask[prompts]
    text_ids = torch.cat([torch.full_like(cached, _PREFIX), owner], 1)
    # For the rule the prefix is the image, which every text of its row sees; a candidate sees itself alone besides.
    rule = PrefixRule(text_ids.new_zeros(len(packs)), shared=(text_ids, torch.zeros_like(text_ids)))
    with decoder.head_on(valid.flatten().nonzero()[:, 0]):
        logits = decoder.read_behind(
            _of_prompts(cache, prompts, len(layout.attention_mask)),
            rule,
            _pad(ids, counts, 0, device),
            torch.cat([cached, valid.long()], 1),
            order=_pad(orders, counts, 0, device),
            before=decoder.end_of(layout)[prompts],
        ).logits
    tally.add(torch.tensor(numbers, device=device), logits, torch.tensor(targets, device=device))


def _pad(runs: Sequence[Sequence[int]], counts: Sequence[int], fill: int, device: torch.device) -> Tensor:
    """Make rows of ``counts`` runs each, one after another, filled up on the right: long ``[len(counts), Q]``."""
    iterator = iter(runs)
    rows = [[value for _ in range(count) for value in next(iterator)] for count in counts]
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)


def _of_prompts(cache: Cache, prompts: Tensor, num_prompts: int) -> Cache:
    """Select the cache's rows of ``prompts``; what is appended to them does not change ``cache``."""
    selected = copy.copy(cache)
    # A shallow copy is enough: layers replace their tensors, they do not write into them.
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    if prompts.tolist() != list(range(num_prompts)):
        selected.batch_select_indices(prompts)
    return selected
