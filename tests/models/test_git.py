"""Plain GIT behind LAVIS's own functions: everything equals transformers' GIT, asked for one example at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional as F

import gitllm_plugin
from gitllm_plugin.errors import ConfigError, DataError

gitllm_plugin.register()

from lavis.models import load_model_and_preprocess, model_zoo  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertTokenizerFast,
    CLIPImageProcessor,
    GitForCausalLM,
    PreTrainedTokenizerFast,
)

from gitllm_plugin.host.config_check import check_config  # noqa: E402
from gitllm_plugin.modeling.git import load_git, pad_left  # noqa: E402
from gitllm_plugin.models.git import GitForLavis  # noqa: E402
from tests.tiny_git import make_checkpoint, make_tokenizer  # noqa: E402

TYPES = {
    f"{size}{task and '_' + task}"
    for size in ("base", "large")
    for task in ("", "coco", "textcaps", "textvqa", "vqav2", "vatex", "msrvtt_qa")
}
FRAMES = 3  # of the video checkpoint
CAPTIONS = ["a red circle", "two blue squares and a big green circle on the left", "no"]
QUESTIONS = ["what color is the big shape on the left?", "red?", "is it a square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("video"), FRAMES)


def load(folder):
    return GitForLavis.from_config({"weights": str(folder)}).eval()


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def video_model(video_folder):
    return load(video_folder)


class Reference:
    """transformers' own classes on one example, as GIT's documentation uses them."""

    def __init__(self, folder):
        self.model = GitForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = BertTokenizerFast.from_pretrained(folder)

    def caption(self, image, **settings):
        token_ids = self.model.generate(pixel_values=image[None], **settings)
        return self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)

    def answer(self, image, question, **settings):
        ids = [self.tokenizer.cls_token_id, *self.tokenizer(question, add_special_tokens=False).input_ids]
        token_ids = self.model.generate(pixel_values=image[None], input_ids=torch.tensor([ids]), **settings)
        return self.tokenizer.batch_decode(token_ids[:, len(ids) :], skip_special_tokens=True)

    def losses(self, image, question, answer):
        """Cross-entropy of each token of the answer and of [SEP], from the logits."""
        ids = [self.tokenizer.cls_token_id, *self.tokenizer(question, add_special_tokens=False).input_ids]
        start = len(ids)
        ids += [*self.tokenizer(answer, add_special_tokens=False).input_ids, self.tokenizer.sep_token_id]
        logits = self.model(input_ids=torch.tensor([ids]), pixel_values=image[None]).logits[0, -len(ids) :]
        return F.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="none")


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder)


@pytest.fixture(scope="module")
def video_reference(video_folder):
    return Reference(video_folder)


def images(*shape):
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------- model types and processors


def test_zoo_lists_one_type_for_each_checkpoint_of_the_hub():
    assert set(dict(iter(model_zoo))["git"]) == TYPES


@pytest.mark.parametrize("model_type", sorted(TYPES))
def test_every_type_is_whole_and_its_images_are_those_of_gits_own_processor(model_type):
    path = GitForLavis.default_config_path(model_type)
    config = OmegaConf.load(path)
    assert Path(path).read_text().startswith("# GIT ")
    assert dict(config.model) == {
        "arch": "git",
        "model_type": model_type,
        "weights": f"microsoft/git-{model_type.replace('_', '-')}",
    }
    assert set(config.preprocess) == {"vis_processor", "text_processor"}
    size = 224 if "vqa" not in model_type else 480 if "base" in model_type else 420
    for phase in ("train", "eval"):
        vis = config.preprocess.vis_processor[phase]
        assert (vis.name, vis.image_size) == (f"git_llm_image_{phase}", size)
        assert (vis.normalization, vis.resize) == ("clip", "shortest_edge")
        assert config.preprocess.text_processor[phase] == {"name": "git_llm_instruction", "template": "question"}


@pytest.fixture
def tiny_type(folder, tmp_path, monkeypatch):
    """A type `tiny` beside the published ones: base_coco's file with other weights and smaller images."""
    config = OmegaConf.load(GitForLavis.default_config_path("base_coco"))
    config.model.update(model_type="tiny", weights=str(folder))
    config.preprocess.vis_processor.eval.image_size = 32
    OmegaConf.save(config, tmp_path / "tiny.yaml")
    monkeypatch.setitem(GitForLavis.PRETRAINED_MODEL_CONFIG_DICT, "tiny", str(tmp_path / "tiny.yaml"))
    return "tiny"


def test_from_a_picture_to_an_answer_through_lavis(tiny_type, reference):
    model, vis, txt = load_model_and_preprocess("git", tiny_type, is_eval=True)
    x, y = np.meshgrid(np.linspace(0, 255, 90), np.linspace(0, 255, 60))
    picture = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))
    image = vis["eval"](picture)
    own = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)(picture, return_tensors="pt").pixel_values[0]
    assert torch.allclose(image, own, atol=0.06)
    question = txt["eval"]("What color is the shape?")
    assert question == "What color is the shape?"
    samples = {"image": image[None], "text_input": [question]}
    answer = model.predict_answers(samples=samples, inference_method="generate", answer_list=None, max_len=5)
    assert answer == reference.answer(image, question, max_new_tokens=5, min_new_tokens=1)


def test_configuration_check_knows_the_keys(tmp_path):
    text = "model: {arch: git, model_type: base_cocoo, weigths: x}\ndatasets: {m3it: {}}\nrun: {task: m3it}\n"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        check_config(tmp_path / "run.yaml")
    assert "Did you mean 'base_coco'?" in str(error.value) and "did you mean 'weights'?" in str(error.value)


# -------------------------------------------------------------------------------------- captions and answers

SEARCHES = [
    ({}, {}),
    ({"num_beams": 3}, {"num_beams": 3}),
    (
        {"num_beams": 3, "num_captions": 2, "length_penalty": 0.3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.3},
    ),
    ({"min_length": 6, "repetition_penalty": 1.7}, {"min_new_tokens": 6, "repetition_penalty": 1.7}),
]


@pytest.mark.parametrize(("asked", "settings"), SEARCHES)
def test_captions_are_those_of_transformers(model, reference, asked, settings):
    pictures = images(4)
    settings = {"max_new_tokens": 8, "min_new_tokens": 1, **settings}
    expected = [caption for picture in pictures for caption in reference.caption(picture, **settings)]
    assert model.generate({"image": pictures}, **{"max_length": 8, "min_length": 1, **asked}) == expected
    assert len(set(expected)) > 1


def test_max_length_counts_new_tokens(model, reference):
    pictures = images(1)
    # transformers' max_length counts the prompt too ([CLS] here), but no image token
    assert model.generate({"image": pictures}, max_length=7) == reference.caption(pictures[0], max_length=8)


def test_sampling_draws_what_transformers_draws(model, reference):
    pictures = images(1)
    torch.manual_seed(3)
    expected = reference.caption(pictures[0], do_sample=True, top_p=0.8, temperature=1.5, max_new_tokens=8)
    torch.manual_seed(3)
    sampled = model.generate(
        {"image": pictures}, use_nucleus_sampling=True, top_p=0.8, temperature=1.5, max_length=8, min_length=0
    )
    assert sampled == expected


@pytest.mark.parametrize(("asked", "settings"), SEARCHES)
def test_questions_of_different_lengths_in_a_batch_are_answered_as_one_by_one(model, reference, asked, settings):
    pictures, image_index = images(2), torch.tensor([0, 1, 1])
    settings = {"max_new_tokens": 8, "min_new_tokens": 1, **settings}
    expected = [
        answer
        for question, row in zip(QUESTIONS, image_index, strict=True)
        for answer in reference.answer(pictures[row], question, **settings)
    ]
    samples = {"image": pictures, "image_index": image_index, "text_input": QUESTIONS}
    asked = {"max_length": 8, "min_length": 1, **asked}
    assert model.generate(samples, **asked) == expected
    separate = {"image": pictures[image_index], "text_input": QUESTIONS}
    assert model.generate(separate, **asked) == expected
    assert len(set(expected)) > 1


def test_lavis_prompt_template_is_filled_with_the_question(model, reference):
    picture = images(1)
    answers = model.predict_answers({"image": picture, "text_input": ["red"]}, prompt="is it {}?", max_len=6)
    assert answers == reference.answer(picture[0], "is it red?", max_new_tokens=6, min_new_tokens=1)


@pytest.mark.parametrize("frames", [FRAMES, 2, None])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_videos_are_captioned_and_asked_about_as_in_transformers(video_model, video_reference, frames, num_beams):
    # With fewer frames than it could read, transformers is right only where no prompt of a batch is padded.
    videos = images(3, frames) if frames else images(3)
    settings = {"max_new_tokens": 8, "min_new_tokens": 1, "num_beams": num_beams}
    expected = [video_reference.caption(video, **settings)[0] for video in videos]
    assert video_model.generate({"image": videos}, max_length=8, min_length=1, num_beams=num_beams) == expected
    expected = [
        video_reference.answer(video, question, **settings)[0]
        for video, question in zip(videos, QUESTIONS, strict=True)
    ]
    samples = {"image": videos, "text_input": QUESTIONS}
    assert video_model.predict_answers(samples, max_len=8, num_beams=num_beams) == expected


def test_padding_moves_to_the_left_and_repeats_the_first_token():
    # A penalty on repetition sees ids without mask; [PAD] would be penalised in padded rows alone.
    ids = torch.tensor([[2, 5, 6], [2, 7, 0], [2, 0, 0]])
    ids, mask = pad_left(ids, (ids != 0).long())
    assert ids.tolist() == [[2, 5, 6], [2, 2, 7], [2, 2, 2]]
    assert mask.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_every_score_of_a_padded_batch_is_that_of_the_single_question(video_model, video_reference):
    videos, scores = images(3, 2), []

    def keep_scores(module, args, output):
        scores.append(output[:, -1])

    with video_model.model.causal_lm.output.register_forward_hook(keep_scores):
        video_model.generate({"image": videos, "text_input": QUESTIONS}, max_length=5, min_length=5)
    batch, settings = torch.stack(scores, dim=1), {"max_new_tokens": 5, "min_new_tokens": 5}
    with video_reference.model.output.register_forward_hook(keep_scores):
        for row in range(3):
            scores.clear()
            video_reference.answer(videos[row], QUESTIONS[row], **settings)
            torch.testing.assert_close(batch[row], torch.cat(scores), rtol=1e-4, atol=1e-4)


def test_an_image_is_encoded_once_for_all_texts_and_beams(model):
    rows = []
    samples = {"image": images(2), "image_index": torch.tensor([0, 0, 1]), "text_input": QUESTIONS}
    vision_model = model.model.causal_lm.git.image_encoder.vision_model
    with vision_model.register_forward_hook(lambda module, args, output: rows.append(len(output.last_hidden_state))):
        model.generate(samples, num_beams=4, max_length=4)
        model({**samples, "text_output": CAPTIONS})
    assert rows == [2, 2]


def test_the_model_is_transformers_own_again_after_use_and_after_errors(video_model, video_reference):
    git = video_model.model.causal_lm
    video = images(1, 2)
    expected = video_reference.caption(video[0], max_new_tokens=4)
    video_model.generate({"image": video}, max_length=4)
    ids = torch.tensor([[2]])
    with pytest.raises(ValueError, match="num_return_sequences"):
        video_model.model.generate(ids, pixel_values=video, num_return_sequences=2, max_new_tokens=2)
    tokens = git.generate(pixel_values=video, max_new_tokens=4)
    assert video_reference.tokenizer.batch_decode(tokens, skip_special_tokens=True) == expected
    assert git.git.encoder.layer[0].attention.self.image_patch_tokens == FRAMES * 17


# -------------------------------------------------------------------------------------- loss and training


def test_loss_and_gradients_of_captions_are_those_of_transformers(folder):
    model, reference, pictures = load(folder), Reference(folder), images(3)
    text = reference.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)
    expected = reference.model(
        input_ids=text.input_ids, attention_mask=text.attention_mask, pixel_values=pictures, labels=labels
    ).loss
    expected.backward()
    out = model({"image": pictures, "text_input": CAPTIONS})
    out["loss"].backward()
    assert out["num_supervised_tokens"] == (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(out["loss"], expected)
    own = dict(model.model.causal_lm.named_parameters())
    for name, parameter in reference.model.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("frames", [None, FRAMES, 2])
def test_loss_of_answers_is_the_mean_over_answers_and_end_tokens(request, frames):
    kind = "video_" if frames else ""
    model, reference = (request.getfixturevalue(kind + name) for name in ("model", "reference"))
    pictures, image_index = images(2, frames) if frames else images(2), torch.tensor([0, 1, 1])
    examples = zip(pictures[image_index], QUESTIONS, CAPTIONS, strict=True)
    expected = torch.cat([reference.losses(*example) for example in examples])
    samples = {"image": pictures, "image_index": image_index, "text_input": QUESTIONS, "text_output": CAPTIONS}
    out = model(samples)
    assert out["num_supervised_tokens"] == len(expected)
    torch.testing.assert_close(out["loss"], expected.mean())


@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize("tokens_at_once", [1, 2048])
def test_candidates_are_scored_by_the_losses_of_transformers(request, frames, tokens_at_once):
    kind = "video_" if frames else ""
    model, reference = (request.getfixturevalue(kind + name) for name in ("model", "reference"))
    pictures, image_index = images(2, frames) if frames else images(2), torch.tensor([0, 1, 1])
    text = model.text_encoder.prompts(QUESTIONS)
    candidates = [CAPTIONS, CAPTIONS[:1], ["red", *CAPTIONS]]
    scores = model.model.score_candidates(
        text.input_ids,
        text.attention_mask,
        pictures,
        candidates=model.text_encoder.candidates(QUESTIONS, candidates),
        image_index=image_index,
        tokens_at_once=tokens_at_once,
    )
    for row, answers in enumerate(candidates):
        picture = pictures[image_index[row]]
        expected = [-reference.losses(picture, QUESTIONS[row], answer).sum() for answer in answers]
        torch.testing.assert_close(scores.log_likelihood[row], torch.stack(expected).detach(), rtol=1e-4, atol=1e-4)
    samples = {"image": pictures, "image_index": image_index, "text_input": QUESTIONS}
    ranked = model.predict_answers(samples, inference_method="rank", answer_list=candidates)
    assert ranked == [answers[n] for answers, n in zip(candidates, scores.best(), strict=True)]


def test_the_loss_is_weighted_where_answers_have_weights(model, reference):
    pictures, weights = images(1), torch.tensor([0.25, 0.75])
    losses = [reference.losses(pictures[0], QUESTIONS[0], answer) for answer in CAPTIONS[:2]]
    expected = sum(w * part.sum() for w, part in zip(weights, losses, strict=True))
    expected = expected / sum(w * len(part) for w, part in zip(weights, losses, strict=True))
    samples = {"image": pictures, "text_input": QUESTIONS[:1], "answer": CAPTIONS[:2], "n_answers": torch.tensor([2])}
    torch.testing.assert_close(model({**samples, "weight": weights})["loss"], expected)


def test_logits_are_those_of_the_text(model, reference):
    ids, pictures = torch.tensor([[2, 5, 6, 7]]), images(1)
    logits = model.model(ids, pixel_values=pictures).logits
    expected = reference.model(input_ids=ids, pixel_values=pictures).logits[:, -4:]
    torch.testing.assert_close(logits, expected)


def test_training_learns_and_its_checkpoint_is_loaded_by_the_configuration(folder, tmp_path):
    model, pictures = load(folder).train(), images(2)
    samples = {"image": pictures, "text_input": QUESTIONS[:2], "text_output": CAPTIONS[:2]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    torch.manual_seed(0)
    for _ in range(20):
        loss = model(samples)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    path = tmp_path / "checkpoint_best.pth"
    torch.save({"model": model.trainable_state_dict()}, path)
    config = {"weights": str(folder), "load_finetuned": True, "finetuned": str(path)}
    loaded = GitForLavis.from_config(config)
    assert loaded.predict_answers(samples, max_len=5) == model.eval().predict_answers(samples, max_len=5)


# -------------------------------------------------------------------------------------- loading, and what is refused


def test_temporal_embeddings_are_found_under_the_name_that_the_hubs_checkpoints_have(tmp_path):
    folder = make_checkpoint(tmp_path, FRAMES)
    saved = load_file(folder / "model.safetensors")
    renamed = {name.replace("img_temporal", "img_temperal"): value for name, value in saved.items()}
    assert renamed.keys() != saved.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    git, _ = load_git(str(folder))
    weights = git.causal_lm.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in saved.items())


def test_a_checkpoint_without_all_weights_is_refused_and_says_what_it_lacks(tmp_path):
    folder = make_checkpoint(tmp_path)
    saved = load_file(folder / "model.safetensors")
    del saved["git.visual_projection.visual_projection.0.weight"]
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"missing: git\.visual_projection.*\.0\.weight"):
        load(folder)


def test_another_kind_of_model_is_refused_before_its_weights_are_read(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a model of type 'bert', but arch 'git' takes GIT alone"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (None, "has no tokenizer, or one without words: save the one"),
        ("words too many", "has 28 tokens, but the model has embeddings for 27; there is none for .extra"),
        ("other", r"has no \[CLS\] or no \[SEP\]"),
    ],
)
def test_a_missing_or_wrong_tokenizer_is_refused(tmp_path, tokenizer, message):
    folder = make_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "words.txt"):
        (folder / name).unlink(missing_ok=True)
    if tokenizer == "words too many":
        words = make_tokenizer(tmp_path)
        words.add_tokens(["extra"])
        words.save_pretrained(folder)
    elif tokenizer == "other":
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"red": 0}))).save_pretrained(folder)
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "/no/such/folder"}, "GIT '/no/such/folder' cannot be loaded: it is neither a local folder"),
        ({"wieghts": "x"}, "did you mean 'weights'"),
        ({"load_finetuned": True}, "model.finetuned names no checkpoint"),
    ],
)
def test_wrong_settings_are_named_with_what_is_allowed(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        GitForLavis.from_config({"weights": str(folder), **changes})


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ({"image": images(1, 2)}, DataError, "2 images .* reads 1 at most: give fewer, or use a video type"),
        ({"image": torch.zeros(1, 3, 48, 40)}, ConfigError, "images of 48x40 pixels.* set image_size: 32"),
        ({"image": None, "text_input": ["red?"]}, DataError, "the batch has no image"),
    ],
)
def test_samples_that_git_cannot_read_are_refused(model, samples, error, message):
    with pytest.raises(error, match=message):
        model.generate(samples)
    with pytest.raises(error, match=message):
        model({"text_input": ["red"], **samples, "text_output": ["red"]})


def test_a_question_that_is_too_long_is_shortened_and_an_answer_is_not(model):
    before = model.num_truncated_prompts
    assert len(model.generate({"image": images(1), "text_input": ["red " * 40]}, max_length=6)) == 1
    assert model.num_truncated_prompts == before + 1
    with pytest.raises(DataError, match="shorten the instruction or the answer"):
        model({"image": images(1), "text_input": ["red"], "text_output": ["red " * 40]})


def test_too_many_or_uneven_frames_are_refused(video_model):
    with pytest.raises(DataError, match=f"{FRAMES + 1} images .* reads {FRAMES} at most: give fewer$"):
        video_model.generate({"image": images(1, FRAMES + 1)})
    uneven = {"image": images(2, FRAMES), "num_images": torch.tensor([FRAMES, 1])}
    with pytest.raises(DataError, match=r"texts with \[1, 3\] images .* the same number"):
        video_model.generate(uneven)


def test_a_text_that_just_fits_is_answered(model, reference):
    picture, question = images(1), " ".join(["red"] * 26)
    # [CLS], 26 words and 5 of the 6 new tokens are read: 32 positions
    settings = {"max_new_tokens": 6, "min_new_tokens": 6}
    samples = {"image": picture, "text_input": [question]}
    assert model.generate(samples, max_length=6, min_length=6) == reference.answer(picture[0], question, **settings)
    before = model.num_truncated_prompts
    model.generate(samples, max_length=6)
    assert model.num_truncated_prompts == before
    model.generate(samples, max_length=7)
    assert model.num_truncated_prompts == before + 1
