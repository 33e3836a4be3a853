"""GIT-LLM behind LAVIS's own functions: zoo, loading by name, losses, answers, checkpoints."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import gitllm_plugin
from gitllm_plugin.errors import ConfigError, DataError

gitllm_plugin.register()

from lavis.models import load_model, load_model_and_preprocess, model_zoo  # noqa: E402

from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402

TYPES = sorted(GitLLMForLavis.PRETRAINED_MODEL_CONFIG_DICT)
TINY = [name for name in TYPES if name.startswith("tiny_")]


@pytest.fixture(scope="module")
def loaded():
    return load_model_and_preprocess("git_llm", "tiny_llama", is_eval=True)


def samples(loaded, count=2):
    _, image, text = loaded
    pictures = torch.stack([image["eval"](Image.new("RGB", (50, 40), color)) for color in ("red", "blue")[:count]])
    return {"image": pictures, "text_input": [text["eval"]("what color is the shape?")] * count}


def test_zoo_lists_every_type():
    assert dict(iter(model_zoo))["git_llm"] == TYPES
    assert {"opt_350m", "opt_6.7b", "llama2_7b", "mpt_7b", "smollm2_135m"} <= set(TYPES)


@pytest.mark.parametrize("model_type", TYPES)
def test_every_type_has_a_whole_configuration(model_type):
    config = OmegaConf.load(GitLLMForLavis.default_config_path(model_type))
    assert set(config.model) <= set(GitLLMForLavis.Settings.__dataclass_fields__)
    assert config.model.model_type == model_type
    for kind in ("vis_processor", "text_processor"):
        assert set(config.preprocess[kind]) == {"train", "eval"}


@pytest.mark.parametrize("model_type", TINY)
def test_every_family_trains_and_answers_through_lavis(model_type):
    model = load_model("git_llm", model_type).train()
    batch = {
        "image": torch.randn(2, 3, 32, 32),
        "image_index": torch.tensor([0, 1, 1]),
        "text_input": ["what color? Answer:", "what shape? Answer:", "is it red? Answer:"],
        "text_output": ["red", "circle", "no"],
    }
    optimizer = torch.optim.AdamW(model.optimizer_groups(0.0), lr=1e-2)
    losses = []
    for _ in range(8):
        out = model(batch)
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out["loss"].detach()))
    assert losses[-1] < losses[0] - 0.02
    answers = model.eval().predict_answers(batch, max_len=4)
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)


def test_answers_do_not_depend_on_the_way_they_are_asked_for(loaded):
    model = loaded[0]
    batch = samples(loaded)
    answers = model.predict_answers(batch, max_len=6)
    assert model.generate(batch, max_length=6) == answers
    assert model.generate({"image": batch["image"], "prompt": batch["text_input"][0]}, max_length=6) == answers
    assert len(model.generate(batch, num_beams=3, num_captions=2, max_length=3)) == 4
    torch.manual_seed(0)
    assert len(model.generate(batch, use_nucleus_sampling=True, max_length=3)) == 2


@pytest.mark.parametrize("frames", [1, 2])
def test_images_that_the_loader_left_in_bytes_are_normalised_here(loaded, frames):
    config = OmegaConf.load(GitLLMForLavis.default_config_path("tiny_llama")).model
    model = GitLLMForLavis.from_config(OmegaConf.merge(config, {"max_images": frames})).eval()
    transform = loaded[1]["eval"].transform
    shape = (2, frames, 3, transform.image_size, transform.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = pixels[:, 0] if frames == 1 else pixels
    texts = {"text_input": ["what color?"] * 2, "text_output": ["red", "blue"]}
    how = {f"image_{key}": torch.tensor([getattr(transform, key)] * 2) for key in ("mean", "std")}
    expected = model({"image": transform.normalize(pixels), **texts})["loss"]
    assert torch.equal(model({"image": pixels, **how, **texts})["loss"], expected)
    with pytest.raises(DataError, match="images in uint8 but neither image_mean nor image_std"):
        model({"image": pixels, **texts})


def test_captions_without_prompt_are_learnt_from_their_first_token(loaded):
    model, image = loaded[0], samples(loaded)["image"]
    out = model({"image": image, "text_input": ["a red shape", "a blue shape"]})
    tokens = sum(len(model.text_encoder.tokenizer(text).input_ids) + 1 for text in (" a red shape", " a blue shape"))
    assert model.prompt == "" and out["num_supervised_tokens"] == tokens
    assert len(model.generate({"image": image}, max_length=3)) == 2


def test_lavis_prompt_template_is_filled_with_the_question(loaded):
    model, batch = loaded[0], samples(loaded)
    # One template is not put into another.
    asked = {**batch, "text_input": [f"Question: {text.question}" for text in batch["text_input"]]}
    assert model.predict_answers(batch, prompt="Question: {}", max_len=5) == model.predict_answers(asked, max_len=5)


def likelihood(model, image, prompt, answer):
    """Log-likelihood of an answer and its end, from the loss of that one text."""
    with torch.no_grad():
        out = model({"image": image[None], "text_input": [prompt], "text_output": [answer]})
    return -float(out["loss"]) * out["num_supervised_tokens"], -float(out["loss"])


ANSWERS = ["red", "a green square", "no", "black triangle", "yes"]


@pytest.mark.parametrize("rank_by", ["sum", "mean"])
def test_ranking_gives_the_answer_with_the_least_loss(loaded, rank_by, monkeypatch):
    model, batch = loaded[0], samples(loaded)
    monkeypatch.setattr(model, "rank_by", rank_by)
    scores = [
        [likelihood(model, image, prompt, answer)[rank_by == "mean"] for answer in ANSWERS]
        for image, prompt in zip(batch["image"], batch["text_input"], strict=True)
    ]
    best = [ANSWERS[max(range(len(ANSWERS)), key=row.__getitem__)] for row in scores]
    asked = {"inference_method": "rank", "num_ans_candidates": 128}
    assert model.predict_answers(batch, answer_list=ANSWERS, **asked) == best
    assert model.predict_answers(batch, answer_list=[["yes"], ANSWERS], **asked) == ["yes", best[1]]
    ranks = model.predict_class(batch, ANSWERS)
    assert ranks.tolist() == [sorted(range(len(ANSWERS)), key=lambda n, row=row: -row[n]) for row in scores]
    assert model.predict_class(batch, [ANSWERS[:2], ANSWERS[:1]])[1] == [0]
    model.before_evaluation(dataset=type("Data", (), {"class_labels": {"yes": 1, "no": 0}}), task_type=None)
    out = model.predict({**batch, "label": torch.tensor([1, 0])})
    torch.testing.assert_close(out["predictions"], torch.tensor([[row[2], row[4]] for row in scores]))
    assert out["targets"].tolist() == [1, 0]


def test_candidates_of_predict_class_stand_behind_the_filled_prompt(loaded):
    model, batch = loaded[0], samples(loaded)
    asked = {"image": batch["image"], "prompt": [f"Is it {text.question}?" for text in batch["text_input"]]}
    filled = model.predict_class({**batch, "prompt": "Is it {}?"}, ANSWERS)
    assert torch.equal(filled, model.predict_class(asked, ANSWERS))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"inference_method": "rank"}, "needs answers to choose from, and the data set has none"),
        ({"inference_method": "guess"}, "it may be 'generate' or 'rank'"),
    ],
)
def test_ranking_without_answers_is_refused(loaded, asked, message):
    with pytest.raises(ConfigError, match=message):
        loaded[0].predict_answers(samples(loaded), **asked)


def test_classes_without_names_are_refused():
    model = load_model("git_llm", "tiny_llama")
    with pytest.raises(ConfigError, match="give them as model.class_names"):
        model.predict({"image": torch.zeros(1, 3, 32, 32), "label": torch.tensor([0])})


def test_lavis_vqa_training_batches_are_learnt_by_the_weight_of_each_answer(loaded):
    model, batch = loaded[0], samples(loaded)
    answers, weights = ["red", "a red circle", "blue"], torch.tensor([0.7, 0.3, 1.0])
    out = model({**batch, "answer": answers, "weight": weights, "n_answers": torch.tensor([2, 1])})
    singly = [
        model({"image": batch["image"][[n]], "text_input": batch["text_input"][:1], "text_output": [answer]})
        for n, answer in zip((0, 0, 1), answers, strict=True)
    ]
    tokens = torch.tensor([single["num_supervised_tokens"] for single in singly])
    losses = torch.stack([single["loss"] for single in singly])
    torch.testing.assert_close(out["loss"], (losses * tokens * weights).sum() / (tokens * weights).sum())
    assert out["num_supervised_tokens"] == tokens.sum()
    assert out["supervised_weight"] == pytest.approx(float((tokens * weights).sum()))


def test_answers_that_are_not_as_many_as_their_questions_say_are_refused(loaded):
    model, batch = loaded[0], samples(loaded)
    with pytest.raises(DataError, match="the batch has 2 answers, but n_answers says 3"):
        model({**batch, "answer": ["red", "blue"], "n_answers": torch.tensor([2, 1])})


def test_classes_are_learnt_by_their_names(loaded, monkeypatch):
    model, batch = loaded[0], samples(loaded)
    monkeypatch.setattr(model, "class_names", ["no", "yes"])
    out = model({**batch, "label": torch.tensor([1, 0])})
    torch.testing.assert_close(out["loss"], model({**batch, "text_output": ["yes", "no"]})["loss"])


def test_a_pair_of_images_is_read_as_two_images():
    given = OmegaConf.load(GitLLMForLavis.default_config_path("tiny_llama")).model
    model = GitLLMForLavis.from_config(OmegaConf.merge(given, {"max_images": 2})).eval()
    pair = torch.randn(3, 2, 3, 32, 32)
    apart = {"image0": pair[:, 0], "image1": pair[:, 1], "prompt": ["alike?"] * 3}
    assert model.generate(apart, max_length=3) == model.generate(
        {"image": pair, "prompt": ["alike?"] * 3}, max_length=3
    )


def test_trained_weights_round_trip_and_nothing_else_is_saved(loaded, tmp_path):
    state = load_model("git_llm", "tiny_llama").trainable_state_dict()
    assert state and all(".lora_" in name or "projection" in name for name in state)
    changed = {name: value + 1 for name, value in state.items()}
    torch.save({"model": changed}, tmp_path / "checkpoint.pth")
    model = load_model("git_llm", "tiny_llama", checkpoint=str(tmp_path / "checkpoint.pth"))
    assert all(torch.equal(value, changed[name]) for name, value in model.trainable_state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_checkpoint_of_another_model_is_refused_and_named(change, tmp_path):
    model = load_model("git_llm", "tiny_llama")
    state = dict(model.trainable_state_dict())
    name = next(iter(state))
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state["model.projection.7.weight"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "other.pth")
    before = {key: value.clone() for key, value in model.trainable_state_dict().items()}
    with pytest.raises(ConfigError, match="other.pth is a checkpoint of another model"):
        model.load_checkpoint(str(tmp_path / "other.pth"))
    assert all(torch.equal(value, before[key]) for key, value in model.trainable_state_dict().items())


def config(**changes):
    given = OmegaConf.load(GitLLMForLavis.default_config_path("tiny_opt")).model
    return OmegaConf.merge(given, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainabel": "proj"}, "did you mean 'trainable'"),
        ({"trainable": "proj+lorra"}, "unknown module 'lorra' .*proj, lora, llm, vit"),
        ({"trainable": "lora", "lora": None}, "'lora' matches no parameter"),
        ({"lora": {"targets": ["q_porj"]}}, "'q_porj' matches no layer"),
        ({"lora": {"rnak": 4}}, "did you mean 'rank'"),
        ({"lr_scale": {"vit": 2}}, "nothing of module 'vit' is trained"),
        ({"language_model": "tiny:bert"}, "no tiny model of family 'bert'; families: falcon, gemma, .*opt"),
        ({"image_encoder": "tiny:eye"}, "no tiny image encoder 'eye'"),
        ({"language_model": "/no/such/folder"}, "'/no/such/folder' cannot be loaded"),
        ({"rank_by": "product"}, "model.rank_by is 'product', expected one of sum, mean"),
        ({"loss_on": "anser"}, "loss_on is 'anser', expected one of answer, all"),
        ({"dtype": "float8"}, "dtype is 'float8', expected one of auto, float32"),
        ({"load_finetuned": True}, "model.finetuned names no checkpoint"),
        ({"load_finetuned": True, "finetuned": "no.pth"}, "no.pth"),
    ],
)
def test_wrong_settings_are_named_with_what_is_allowed(changes, message):
    with pytest.raises(ConfigError, match=message):
        model = GitLLMForLavis.from_config(config(**changes))
        model.optimizer_groups(0.0)


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ({"instance_id": ["train:4", "train:9"]}, "(now example 'train:9')"),
        ({"question_id": torch.tensor([7, 12])}, "(now example 12)"),
        ({"image_id": ["north", "south"]}, "(now example 'south')"),
    ],
)
def test_a_prompt_that_is_cut_is_named(ids, named, caplog):
    model = GitLLMForLavis.from_pretrained("tiny_llama")
    batch = {"image": torch.zeros(2, 3, 32, 32), "text_input": ["is it red?", "is it " + "word " * 400], **ids}
    for _ in range(4):
        model.encode_prompts(batch, batch["text_input"], 4)
    # The fourth is only counted.
    assert model.num_truncated_prompts == 4 and caplog.text.count(named) == 3
    model.encode_prompts({"image": batch["image"]}, ["word " * 400] * 7, 4)
    assert "11 prompts so far" in caplog.text
    assert (
        "(now text 1 of 7 in the batch, text 2 of 7 in the batch, text 3 of 7 in the batch and 4 more)" in caplog.text
    )


def test_a_prompt_longer_than_the_context_loses_the_end_of_its_question_and_is_counted(caplog):
    model, image, text = load_model_and_preprocess("git_llm", "tiny_llama", is_eval=True)
    picture = torch.stack([image["eval"](Image.new("RGB", (40, 40)))] * 2)
    questions = ["is it red? " + "word " * 400, "is it red?"]
    batch = {"image": picture, "text_input": [text["eval"](q) for q in questions], "question": questions}
    answers = model.generate(batch, max_length=5)
    assert model.num_truncated_prompts == 1 and "1 prompts so far were longer than the context" in caplog.text
    short = {"image": picture[1:], "text_input": batch["text_input"][1:], "question": questions[1:]}
    assert answers[1:] == model.generate(short, max_length=5)
    loss = model({**batch, "text_output": ["a red circle", "no"]})
    assert model.num_truncated_prompts == 2 and torch.isfinite(loss["loss"])
    assert "(now text 1 of 2 in the batch)" in caplog.text
    assert (
        loss["num_supervised_tokens"]
        == model(  # the answers are whole
            {**batch, "text_input": ["x", "x"], "question": ["x", "x"], "text_output": ["a red circle", "no"]}
        )["num_supervised_tokens"]
    )


def test_an_answer_longer_than_the_context_is_refused(loaded):
    with pytest.raises(DataError, match="leaves no room for its question: .*shorten the instruction or the answer"):
        loaded[0]({**samples(loaded, 1), "text_output": ["no " * 400]})


def test_a_conversation_needs_a_template(loaded):
    with pytest.raises(ConfigError, match="neither the tokenizer nor the family 'opt' has one"):
        GitLLMForLavis.from_config(config(chat_template=True))
    model = load_model("git_llm", "tiny_llama")
    given = OmegaConf.load(GitLLMForLavis.default_config_path("tiny_llama")).model
    talks = GitLLMForLavis.from_config(OmegaConf.merge(given, {"chat_template": True}))
    prompt = "what color is the shape?"
    assert torch.equal(
        talks.text_encoder.prompts([prompt]).input_ids,
        model.text_encoder.prompts([f"[INST] {prompt} [/INST]"]).input_ids,
    )


def test_images_of_another_size_are_refused(loaded):
    with pytest.raises(ConfigError, match="image_size: 32"):
        loaded[0].generate({"image": torch.zeros(1, 3, 48, 48), "prompt": "x"})


def test_more_images_than_the_model_was_built_for_are_refused(loaded):
    with pytest.raises(DataError, match="set model.max_images to 3"):
        loaded[0].generate({"image": torch.zeros(1, 3, 3, 32, 32), "prompt": "x"})


def test_configurations_are_found_beside_the_package():
    assert all(Path(path).is_file() for path in GitLLMForLavis.PRETRAINED_MODEL_CONFIG_DICT.values())
