"""Many pictures in words: do projected image vectors land on words, and on the right ones?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gitllm_plugin.errors import DataError
from gitllm_plugin.words.nearest import MEASURES, Measure, nearest_tokens
from gitllm_plugin.words.vocabulary import Vocabulary

_SAMPLE = 2000
_SEED = 0


@dataclass(frozen=True)
class CaptionMatch:
    """Whether nearest words are words of the picture's own caption.

    Attributes:
        share: of vectors whose nearest word occurs in a caption of their picture.
        shuffled: the same vectors with the captions of the other pictures, averaged over all of these: what the
            words reach that say nothing about the picture.
        standard_error: of ``share - shuffled``, over pictures.
    """

    share: float
    shuffled: float
    standard_error: float

    @property
    def gain(self) -> float:
        """How much larger the share is than the shuffled one."""
        return self.share - self.shuffled


@dataclass(frozen=True)
class MeasureStatistics:
    """What one measure says.

    Attributes:
        in_caption: None where no captions were given.
        among_captions: the same, where only tokens that occur in some picture's captions can be the nearest: whether
            vectors lean towards their own words, even if other tokens are nearer.
        distinct: how many different tokens are nearest to some vector.
        frequent: the most frequent of them, with the share of vectors that each is nearest to.
    """

    in_caption: CaptionMatch | None
    among_captions: CaptionMatch | None
    distinct: int
    frequent: list[tuple[str, float]]


@dataclass(frozen=True)
class Similarities:
    """Mean cosine similarities. ``nearest_*`` are to the nearest token of the vocabulary, ``pairs_*`` of random pairs.

    Attributes:
        nearest_image: of image vectors.
        nearest_random: of random directions: what the best of so many tokens gives by chance.
        nearest_word: of tokens to the nearest token that is another word.
        pairs_image: two image vectors of different pictures.
        pairs_patch: two image vectors of one picture; None where a picture has one.
        pairs_word: two tokens.
        pairs_image_word: an image vector and a token.
    """

    nearest_image: float
    nearest_random: float
    nearest_word: float
    pairs_image: float
    pairs_patch: float | None
    pairs_word: float
    pairs_image_word: float


@dataclass(frozen=True)
class WordStatistics:
    """All of it.

    Attributes:
        pictures, vectors: how many.
        measures: by measure.
        similarities: mean cosines.
        effective_rank_image, effective_rank_word: of so many image vectors, and of as many tokens.
        norm_image, norm_word: mean lengths.
        nearest_cosines: for the figure, of image vectors, random directions and words, a sample.
    """

    pictures: int
    vectors: int
    measures: dict[Measure, MeasureStatistics]
    similarities: Similarities
    effective_rank_image: float
    effective_rank_word: float
    norm_image: float
    norm_word: float
    nearest_cosines: dict[str, list[float]]


def word_statistics(
    pictures: Sequence[Tensor], vocabulary: Vocabulary, captions: Sequence[set[str]] | None = None
) -> WordStatistics:
    """Compare the vectors of many pictures with the vocabulary.

    Args:
        pictures: of each, ``[P, D]``, P at least 1.
        vocabulary: the language model's.
        captions: the words of each picture's captions, see :func:`~gitllm_plugin.words.vocabulary.words_of`.

    Raises:
        DataError: fewer than two pictures: there is nothing to compare one with.
    """
    if len(pictures) < 2:
        raise DataError(f"statistics need at least two pictures, {len(pictures)} given")
    generator = torch.Generator().manual_seed(_SEED)
    lengths = [len(vectors) for vectors in pictures]
    everything = torch.cat(list(pictures)).float()
    owner = torch.arange(len(pictures)).repeat_interleave(torch.tensor(lengths))
    image = _sample(len(everything), generator)
    words = _sample(len(vocabulary.texts), generator, len(image))
    nearest = {measure: nearest_tokens(everything, vocabulary, 1, measure) for measure in MEASURES}
    cosines = {
        "image vectors": nearest["cosine"][0][image, 0],
        "random directions": _nearest_random(len(image), vocabulary, generator),
        "words": _nearest_other_word(words, vocabulary),
    }
    directions, tokens = F.normalize(everything[image], dim=-1), vocabulary.directions[words]
    same_picture = owner[image][:, None] == owner[image][None, :]
    same_patches = same_picture & ~torch.eye(len(image), dtype=torch.bool)
    among_image = directions @ directions.T
    return WordStatistics(
        pictures=len(pictures),
        vectors=len(everything),
        measures={
            measure: _of_measure(measure, everything, nearest[measure][1][:, 0].tolist(), lengths, vocabulary, captions)
            for measure in MEASURES
        },
        similarities=Similarities(
            nearest_image=float(nearest["cosine"][0].mean()),
            nearest_random=float(cosines["random directions"].mean()),
            nearest_word=float(cosines["words"].mean()),
            pairs_image=float(among_image[~same_picture].mean()),
            pairs_patch=float(among_image[same_patches].mean()) if same_patches.any() else None,
            pairs_word=float((tokens @ tokens.T)[~torch.eye(len(words), dtype=torch.bool)].mean()),
            pairs_image_word=float((directions @ tokens.T).mean()),
        ),
        effective_rank_image=effective_rank(everything[image]),
        effective_rank_word=effective_rank(vocabulary.vectors[words]),
        norm_image=float(everything.norm(dim=-1).mean()),
        norm_word=float(vocabulary.vectors.norm(dim=-1).mean()),
        nearest_cosines={name: values.tolist() for name, values in cosines.items()},
    )


def effective_rank(vectors: Tensor) -> float:
    """How many directions the vectors ``[n, D]`` spread over: the exponential of the entropy of their singular
    values after centring (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals((vectors - vectors.mean(0)).double())
    shares = values[values > 0] / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def _of_measure(
    measure: Measure,
    vectors: Tensor,
    nearest: list[int],
    lengths: list[int],
    vocabulary: Vocabulary,
    captions: Sequence[set[str]] | None,
) -> MeasureStatistics:
    in_caption = among_captions = None
    if captions is not None:
        in_caption = match_captions([vocabulary.words[token] for token in nearest], lengths, captions)
        named = vocabulary.of_words(set().union(*captions))
        if named.texts:
            ids = nearest_tokens(vectors, named, 1, measure)[1][:, 0].tolist()
            among_captions = match_captions([named.words[token] for token in ids], lengths, captions)
    counts = Counter(vocabulary.texts[token] for token in nearest)
    frequent = [(token, count / len(nearest)) for token, count in counts.most_common(10)]
    return MeasureStatistics(in_caption, among_captions, len(counts), frequent)


def match_captions(nearest: Sequence[str], lengths: Sequence[int], captions: Sequence[set[str]]) -> CaptionMatch:
    """Measure the share of vectors whose nearest word is in their picture's captions.

    Args:
        nearest: the nearest word of each vector, picture after picture.
        lengths: how many vectors each picture has.
        captions: the words of each picture's captions.
    """
    in_how_many = Counter(word for caption in captions for word in caption)
    own, other, first = [], [], 0
    for length, caption in zip(lengths, captions, strict=True):
        words = nearest[first : first + length]
        first += length
        hits = [word in caption for word in words]
        elsewhere = [(in_how_many[word] - hit) / (len(captions) - 1) for word, hit in zip(words, hits, strict=True)]
        own.append(sum(hits))
        other.append(sum(elsewhere))
    total = sum(lengths)
    gain = torch.tensor(own, dtype=torch.double) - torch.tensor(other, dtype=torch.double)
    gain = gain / torch.tensor(lengths)
    return CaptionMatch(
        share=sum(own) / total,
        shuffled=sum(other) / total,
        standard_error=float(gain.std() / len(lengths) ** 0.5),
    )


def _sample(size: int, generator: torch.Generator, count: int = _SAMPLE) -> Tensor:
    return torch.randperm(size, generator=generator)[:count]


def _nearest_random(count: int, vocabulary: Vocabulary, generator: torch.Generator) -> Tensor:
    vectors = torch.randn(count, vocabulary.vectors.shape[-1], generator=generator)
    return nearest_tokens(vectors, vocabulary, 1, "cosine")[0][:, 0]


def _nearest_other_word(tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Find the cosine of each token to the nearest one that is another word: " dog" is no other word than "Dog"."""
    variants = max(Counter(vocabulary.words).values())
    k = min(variants + 1, len(vocabulary.texts))
    scores, ids = nearest_tokens(vocabulary.vectors[tokens], vocabulary, k, "cosine")
    best = [
        next(
            score for score, other in zip(row, others, strict=True) if vocabulary.words[other] != vocabulary.words[own]
        )
        for own, row, others in zip(tokens.tolist(), scores.tolist(), ids.tolist(), strict=True)
    ]
    return torch.tensor(best)
