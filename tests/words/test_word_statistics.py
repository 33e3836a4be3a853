"""Statistics over many pictures: against hand counts, and on vectors whose meaning is known."""

import pytest
import torch

from gitllm_plugin.errors import DataError
from gitllm_plugin.words.report import lean_in_words, statistics_blocks, write_statistics
from gitllm_plugin.words.statistics import effective_rank, match_captions, word_statistics
from gitllm_plugin.words.vocabulary import Vocabulary

WORDS = [" red", " Red", " blue", " dog", " cat", " a"]


@pytest.fixture(scope="module")
def vocabulary():
    generator = torch.Generator().manual_seed(1)
    texts = [*WORDS, *(f" filler{i}" for i in range(200))]
    vectors = torch.randn(len(texts), 32, generator=generator)
    vectors[1] = vectors[0] + 0.01  # the same word in another spelling
    return Vocabulary(texts, vectors, 0)


def test_matches_are_counted_as_by_hand():
    # Three pictures with 2, 1 and 2 vectors.
    match = match_captions(["a", "red", "dog", "a", "blue"], [2, 1, 2], [{"a", "red"}, {"a", "dog"}, {"blue"}])
    assert match.share == pytest.approx(4 / 5)  # all but the second "a"
    # Others that have the word, of two: a 1, red 0, dog 0, a 2, blue 0.
    assert match.shuffled == pytest.approx((0.5 + 0 + 0 + 1 + 0) / 5)
    gains = torch.tensor([(2 - 0.5) / 2, 1.0, (1 - 1) / 2], dtype=torch.double)
    assert match.standard_error == pytest.approx(float(gains.std() / 3**0.5))


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.outer(torch.arange(10.0), torch.ones(4))) == pytest.approx(1)
    # n orthogonal vectors of one length lose one direction by centring.
    assert effective_rank(torch.eye(8)) == pytest.approx(7)


def test_vectors_that_are_words_of_their_caption(vocabulary):
    pictures = [vocabulary.vectors[[2 + index % 3, 5]] * 2 for index in range(30)]
    captions = [{"a", WORDS[2 + index % 3].strip()} for index in range(30)]
    found = word_statistics(pictures, vocabulary, captions)
    for measure in ("cosine", "dot"):
        match = found.measures[measure].in_caption
        assert match.share == 1
        # "a" is in every caption; each of the three words in 9 of the 29 others.
        assert match.shuffled == pytest.approx((1 + 9 / 29) / 2)
        assert found.measures[measure].distinct == 4
        assert found.measures[measure].frequent[0] == (" a", 0.5)
    assert found.similarities.nearest_image == pytest.approx(1)
    assert found.similarities.nearest_random < 0.7
    assert found.norm_image == pytest.approx(2 * float(vocabulary.vectors[[2, 3, 4, 5, 5, 5]].norm(dim=-1).mean()))
    assert (found.pictures, found.vectors) == (30, 60)


def test_leaning_towards_words_that_are_not_the_nearest(vocabulary):
    """Vectors near a filler word, with a little of their caption's word in them."""
    filler = vocabulary.vectors[50]
    pictures = [(filler + 0.3 * vocabulary.vectors[[2 + index % 3]]) for index in range(30)]
    captions = [{WORDS[2 + index % 3].strip(), "a"} for index in range(30)]
    for found in word_statistics(pictures, vocabulary, captions).measures.values():
        assert found.in_caption.share == 0 and found.distinct == 1
        assert found.among_captions.share > 0.6 > found.among_captions.shuffled


def test_a_word_is_not_its_own_neighbour_in_another_spelling(vocabulary):
    alone = word_statistics([torch.randn(4, 32), torch.randn(4, 32)], vocabulary)
    assert alone.similarities.nearest_word < 0.8  # " red" and " Red" have cosine 1
    assert alone.measures["cosine"].in_caption is None


def test_random_directions_are_where_chance_is(vocabulary):
    generator = torch.Generator().manual_seed(3)
    found = word_statistics([torch.randn(50, 32, generator=generator) for _ in range(20)], vocabulary)
    assert found.similarities.nearest_image == pytest.approx(found.similarities.nearest_random, abs=0.02)
    assert found.effective_rank_image == pytest.approx(found.effective_rank_word, rel=0.1)


def test_one_picture_is_no_statistics(vocabulary):
    with pytest.raises(DataError, match="at least two pictures, 1 given"):
        word_statistics([torch.randn(4, 32)], vocabulary)


def test_table_and_files(vocabulary, tmp_path):
    captions = [{"red"}, {"blue"}]
    found = word_statistics([vocabulary.vectors[:1], vocabulary.vectors[2:3]], vocabulary, captions)
    matches, vectors, words = statistics_blocks(found)
    assert matches.rows[0] == ("cosine, all words", "100.0%", "0.0%", "+100.0 ± 0.0")
    assert words.startswith("Vectors lean towards words of their own captions by cosine and dot: ")
    assert all(len(line) <= 80 for table in (matches, vectors) for line in str(table).splitlines())
    assert [path.name for path in write_statistics(found, tmp_path)] == ["statistics.json", "statistics.png"]
    assert found.similarities.pairs_patch is None
    assert not any(row[0] == "cosine of one picture's vectors" for row in vectors.rows)
    assert '"nearest_cosines"' not in (tmp_path / "statistics.json").read_text()


def test_only_what_is_beyond_twice_the_error_is_a_lean(vocabulary):
    generator = torch.Generator().manual_seed(4)
    pictures = [torch.randn(4, 32, generator=generator) for _ in range(20)]
    captions = [{WORDS[2 + index % 3].strip(), "a"} for index in range(20)]
    found = word_statistics(pictures, vocabulary, captions)
    assert lean_in_words(found).startswith("Vectors do not lean towards words of their own captions")
    only_table, line = statistics_blocks(word_statistics(pictures, vocabulary))
    assert only_table.rows[0][0] == "pictures" and line.startswith("Without captions")
