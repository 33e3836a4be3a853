"""Words as vectors, and which of them is nearest."""

import pytest
import torch

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.tiny import tiny_language_model, tiny_tokenizer
from gitllm_plugin.words.nearest import nearest_tokens
from gitllm_plugin.words.vocabulary import Vocabulary, read_vocabulary, words_of


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize(
    ("family", "variant", "first_layer"),
    [
        ("opt", None, "model.decoder.layers.0"),
        ("opt", "without_project_in", "model.decoder.layers.0"),
        ("llama", None, "model.layers.0"),
    ],
)
def test_vectors_are_what_the_first_layer_reads(family, variant, first_layer, tokenizer):
    decoder = tiny_language_model(family, variant)
    vocabulary = read_vocabulary(decoder, tokenizer)
    read = []
    decoder.get_submodule(first_layer).register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs.get("hidden_states", args[0] if args else None)),
        with_kwargs=True,
    )
    token = tokenizer(" red", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        decoder(input_ids=torch.tensor([[token]]))
        expected = read[0][0, 0]
        if family == "opt":
            expected = expected - decoder.model.decoder.embed_positions(torch.ones(1, 1), 0)[0, 0]
    index = vocabulary.texts.index(tokenizer.decode([token]))
    torch.testing.assert_close(vocabulary.vectors[index], expected, atol=1e-6, rtol=0)
    assert vocabulary.vectors.shape[1] == decoder.config.hidden_size


def test_what_is_no_word_is_left_out_and_counted(tokenizer):
    vocabulary = read_vocabulary(tiny_language_model("llama"), tokenizer)
    assert not {"<pad>", "<s>", "</s>", " ", "\n"} & set(vocabulary.texts)
    assert all(text.strip().isprintable() and "�" not in text for text in vocabulary.texts)
    assert not {"\x00", "\x0f", "\x7f"} & set(vocabulary.texts)
    assert {" red", " square", "r"} <= set(vocabulary.texts)
    assert len(vocabulary.texts) + vocabulary.num_left_out == len(tokenizer)
    assert vocabulary.num_left_out > 100  # a byte-level vocabulary has many bytes that are no text alone


def test_embeddings_that_cannot_be_widened_are_refused(tokenizer):
    decoder = tiny_language_model("llama")
    decoder.set_input_embeddings(torch.nn.Embedding(len(tokenizer), 8))
    with pytest.raises(ConfigError, match="are 8 wide, the decoder is 64 wide, and it has no layer project_in"):
        read_vocabulary(decoder, tokenizer)


def test_words_of_a_caption_are_its_words_and_their_pieces(tokenizer):
    words = words_of("A Red circle, unlikely.", tokenizer)
    assert {"red", "circle", "circle,"} <= words  # the tokenizer cuts the comma off
    assert "," not in words and "." not in words


def test_nearest_is_what_brute_force_finds():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 16, generator=generator) * torch.rand(50, 1, generator=generator) * 3
    vocabulary = Vocabulary([f"t{i}" for i in range(50)], table, 0)
    vectors = torch.randn(300, 16, generator=generator)  # more than one chunk
    for measure in ("cosine", "dot"):
        scores, ids = nearest_tokens(vectors, vocabulary, 3, measure)
        for row in (0, 255, 256, 299):
            by_hand = [
                float(torch.dot(vectors[row], word) / (vectors[row].norm() * word.norm() if measure == "cosine" else 1))
                for word in table
            ]
            best = sorted(range(50), key=lambda index: -by_hand[index])[:3]
            assert ids[row].tolist() == best
            assert scores[row].tolist() == pytest.approx([by_hand[index] for index in best], abs=1e-5)
    cosine, dot = (nearest_tokens(vectors, vocabulary, 1, measure)[1] for measure in ("cosine", "dot"))
    assert (cosine != dot).any(), "long embeddings win by dot product"
