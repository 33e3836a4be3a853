"""Exported folders behind transformers' Auto classes: the same numbers and answers as this package's own."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from gitllm_plugin import Pipeline
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.hf import saving
from gitllm_plugin.hf.configuration import GitLLMConfig
from gitllm_plugin.hf.model import GitLLMForConditionalGeneration
from gitllm_plugin.hf.processor import GitLLMProcessor
from gitllm_plugin.inference.asking import Decoding, Question
from gitllm_plugin.modeling import LoraSettings, build_git_llm, load_folder, save_folder
from gitllm_plugin.modeling.tiny import sharpen
from tests.modeling.batches import FAMILY_NAMES
from tests.tiny_folder import TRANSFORM

GRADIENT = Image.linear_gradient("L").convert("RGB")
PICTURES = (GRADIENT, Image.new("RGB", (40, 30), "teal"), GRADIENT.rotate(90).resize((50, 33)))
PIXELS = torch.stack([TRANSFORM(picture) for picture in PICTURES])
QUESTIONS = ("is it red?", "what color is the shape in the image?", "")
DECODING = Decoding(max_new_tokens=5)


def write(folder, family="llama", lora=True, encoder="clip", **settings):
    """A folder as `gitllm export` writes it; attention and LoRA matter to its answers."""
    kept = {"text_processor": {"name": "git_llm_instruction", "template": "plain"}, **settings.pop("kept", {})}
    settings |= {"lora": LoraSettings(dropout=0.0), "trainable": "proj+lora"} if lora else {"trainable": "proj"}
    model, tokenizer = build_git_llm(f"tiny:{family}", f"tiny:{encoder}", dtype="float32", **settings)
    sharpen(model.language_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.startswith("temporal"):
                parameter.normal_(std=0.1)
    save_folder(model, folder, tokenizer=tokenizer, image_processor=TRANSFORM.as_preprocessor_config(), settings=kept)
    return folder


def opened(folder, dtype="float32"):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype), AutoProcessor.from_pretrained(folder)


def messages(question, *pictures, system=None):
    parts = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]
    before = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return [*before, {"role": "user", "content": parts}]


def asked(processor, *conversations):
    return processor.apply_chat_template(
        list(conversations), tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )


def answers(model, processor, inputs, **settings):
    tokens = model.generate(**inputs, **{"max_new_tokens": 5, **settings})
    assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def both(folder):
    return opened(folder)


def check_contract(folder, dtype, tmp_path):
    """Answers, logits and loss are those of `Pipeline` and `GitLLM`, and those of what is saved again are the same."""
    ours = Pipeline.from_pretrained(folder, dtype=dtype)
    model, processor = opened(folder, dtype)
    assert type(model) is GitLLMForConditionalGeneration and type(processor) is GitLLMProcessor
    inputs = asked(processor, *(messages(q, p) for q, p in zip(QUESTIONS, PICTURES, strict=True)))
    questions = [Question((p,), q) for q, p in zip(QUESTIONS, PICTURES, strict=True)]
    batch = ours.answers(questions, DECODING)
    assert answers(model, processor, inputs) == batch
    single = asked(processor, messages(QUESTIONS[1], PICTURES[1]))
    assert answers(model, processor, single) == [ours.answer(PICTURES[1], QUESTIONS[1], decoding=DECODING)]

    prompts = processor.apply_chat_template([messages(q, p) for q, p in zip(QUESTIONS, PICTURES, strict=True)])
    trained = processor(list(PICTURES), prompts, answers=["no", "a red circle", "gray"])
    text = ours.text_encoder.prompts_and_answers(prompts, ["no", "a red circle", "gray"])
    with torch.no_grad():
        found, wanted = model(**trained), ours.model(text.input_ids, text.attention_mask, PIXELS, text.labels)
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.loss, wanted.loss)

    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again = opened(tmp_path / "again", dtype)
    with torch.no_grad():
        assert torch.equal(again[0](**trained).logits, found.logits)
    assert answers(*again, inputs) == batch


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_answers_alike(family, tmp_path):
    folder = write(tmp_path / "tiny", family)
    ours, (model, processor) = load_folder(folder, dtype="float32", self_test=False).model, opened(folder)
    inputs = asked(processor, *(messages(q, p) for q, p in zip(QUESTIONS[:2], PICTURES, strict=False)))
    with torch.no_grad():
        found, wanted = model(**inputs).logits, ours(**inputs).logits
    assert torch.equal(found, wanted)
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    ends = {"eos_token_id": model.generation_config.eos_token_id, "pad_token_id": 0}
    new = ours.generate(**inputs, **settings, **ends)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :], new)


@pytest.mark.parametrize(("family", "lora", "dtype"), [("qwen2", True, "float32"), ("opt", False, "bfloat16")])
def test_the_contract(family, lora, dtype, tmp_path):
    check_contract(write(tmp_path / "tiny", family, lora), dtype, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_contract_of_every_family(family, lora, dtype, tmp_path):
    check_contract(write(tmp_path / "tiny", family, lora), dtype, tmp_path)


def test_several_pictures_and_texts_with_more_and_less_of_them(tmp_path):
    folder = write(tmp_path / "tiny", "gpt_neox", max_images=3)
    ours, (model, processor) = Pipeline.from_pretrained(folder, dtype="float32"), opened(folder)
    conversations = [messages("is it red?", *PICTURES), messages("what color?", PICTURES[0], PICTURES[1])]
    conversations.append(messages("", PICTURES[2], system="Describe the picture in a few words."))
    inputs = asked(processor, *conversations)
    assert inputs["num_images"].tolist() == [3, 2, 1] and inputs["pixel_values"].shape == (3, 3, 3, 32, 32)
    assert answers(model, processor, inputs) == [
        ours.answer(list(PICTURES), "is it red?", decoding=DECODING),
        ours.answer(list(PICTURES[:2]), "what color?", decoding=DECODING),
        ours.answer(PICTURES[2], "", "Describe the picture in a few words.", DECODING),
    ]
    with pytest.raises(DataError, match="4 pictures of a text; this model takes 1 to 3"):
        asked(processor, messages("?", *PICTURES, GRADIENT))


def test_a_model_of_conversations_is_asked_in_one(tmp_path):
    template = (
        "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}answer:{% endif %}"
    )
    folder = tmp_path / "tiny"
    model, tokenizer = build_git_llm("tiny:llama", "tiny:siglip", trainable="proj", dtype="float32")
    tokenizer.chat_template = template
    processor = TRANSFORM.as_preprocessor_config()
    save_folder(model, folder, tokenizer=tokenizer, image_processor=processor, settings={"chat_template": True})
    ours, (model, processor) = Pipeline.from_pretrained(folder, dtype="float32"), opened(folder)
    inputs = asked(processor, messages("what color?", GRADIENT))
    assert "answer:" in processor.batch_decode(inputs["input_ids"])[0]
    assert answers(model, processor, inputs) == [ours.answer(GRADIENT, "what color?", decoding=DECODING)]


@pytest.mark.parametrize(
    ("settings", "decoding"),
    [
        ({"num_beams": 3}, Decoding(5, num_beams=3)),
        ({"repetition_penalty": 3.0}, Decoding(5, repetition_penalty=3.0)),
        ({"do_sample": True, "temperature": 2.0, "top_p": 0.8}, Decoding(5, temperature=2.0, top_p=0.8)),
        (
            {"generation_config": GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=2)},
            None,
        ),
    ],
)
def test_the_settings_of_generate(both, folder, settings, decoding):
    model, processor = both
    inputs = asked(processor, messages("is it red?", GRADIENT))
    ours = Pipeline.from_pretrained(folder, dtype="float32")
    torch.manual_seed(0)
    found = answers(model, processor, inputs, **{"max_new_tokens": None, **settings} if decoding is None else settings)
    torch.manual_seed(0)
    assert found == [ours.answer(GRADIENT, "is it red?", decoding=decoding or DECODING)]


def test_outputs_and_several_sequences_hold_the_prompt(both):
    model, processor = both
    inputs = asked(processor, messages("is it red?", GRADIENT), messages("?", PICTURES[1]))
    found = model.generate(
        **inputs, max_new_tokens=3, num_beams=2, num_return_sequences=2, return_dict_in_generate=True
    )
    length = inputs["input_ids"].shape[1]
    assert found.sequences.shape[0] == 4
    assert torch.equal(found.sequences[:, :length], inputs["input_ids"].repeat_interleave(2, 0))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 20},
        {"assistant_model": object()},
        {"inputs_embeds": torch.zeros(1, 2, 64)},
        {"prompt_lookup_num_tokens": 3},
        {"max_tokens": 5},
        {"generation_config": GenerationConfig(max_length=30)},
        {"generation_config": GenerationConfig(guidance_scale=2.0, max_new_tokens=3)},
    ],
)
def test_what_generate_does_not_know_is_refused(both, settings):
    model, processor = both
    inputs = asked(processor, messages("is it red?", GRADIENT))
    unknown = next(iter(settings))
    named = "max_length|guidance_scale" if unknown == "generation_config" else unknown
    with pytest.raises(ConfigError, match=f"of a GIT-LLM does not know .*({named})"):
        model.generate(**inputs, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attn_implementation": "eager"}, "chooses by itself how it attends"),
        ({"quantization_config": SimpleNamespace()}, "does not know quantization_config"),
        ({"output_loading_info": True}, "does not know output_loading_info"),
        ({"device_map": {"model.image_encoder": "cpu", "model.language_model": "meta"}}, "stands on one device"),
        ({"device_map": "balanced"}, "no device"),
        ({"dtype": torch.float64}, "dtype 'float64'; allowed"),
        ({"max_images": 4}, "not that of .*: max_images"),
    ],
)
def test_what_loading_does_not_know_is_refused(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        AutoModelForImageTextToText.from_pretrained(folder, **arguments)


@pytest.mark.parametrize(
    "arguments", [{}, {"dtype": torch.float32}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}]
)
def test_ways_to_say_where_and_how_a_model_is_held(folder, arguments):
    model = AutoModelForImageTextToText.from_pretrained(folder, **arguments)
    assert model.device == torch.device("cpu") and not model.training
    if "dtype" in arguments:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_configuration_says_what_the_model_is_made_of(folder):
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is GitLLMConfig and config.model_type == "git_llm"
    assert config.get_text_config().model_type == "llama" and config.vision_config.model_type == "clip_vision_model"
    assert (config.max_images, config.projection, config.vision_layer) == (1, "linear_norm", -1)
    assert config.architectures == [GitLLMForConditionalGeneration.__name__]
    again = GitLLMConfig.from_dict(json.loads(config.to_json_string()))
    assert config.differs_from(again) == []
    again.vision_config.hidden_size += 1
    assert config.differs_from(again) == ["vision_config"]


def test_there_is_no_model_without_weights(folder):
    with pytest.raises(ConfigError, match="weights would be random"):
        AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize(
    "fault", ["projection.safetensors", "config.json", "language_model/model.safetensors", "adapter"]
)
def test_a_damaged_folder_is_refused(fault, tmp_path):
    folder = write(tmp_path / "tiny")
    path = folder / fault
    if path.is_dir():
        path.rename(tmp_path / "elsewhere")
    elif path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_images": 7}))
    else:
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="not the bytes that were written|adapter_model.safetensors is missing"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_saving_over_an_earlier_model_and_in_either_order(both, folder, tmp_path):
    target = tmp_path / "saved"
    write(target, "opt", max_images=2)
    (target / "notes.txt").write_text("mine")
    (target / "adapter" / "stale.json").write_text("{}")
    model, processor = both
    model.generation_config.max_new_tokens = 7
    try:
        model.save_pretrained(target)
    finally:
        model.generation_config.max_new_tokens = 30
    processor.save_pretrained(target)
    processor.save_pretrained(tmp_path / "first")
    assert AutoProcessor.from_pretrained(tmp_path / "first").to_dict() == processor.to_dict()
    model.save_pretrained(tmp_path / "first")
    assert (target / "notes.txt").read_text() == "mine" and not (target / "adapter" / "stale.json").exists()
    assert opened(target)[0].generation_config.max_new_tokens == 7
    wanted = Pipeline.from_pretrained(folder, dtype="float32").answer(GRADIENT, "is it red?", decoding=DECODING)
    for saved in (target, tmp_path / "first"):
        assert not list(tmp_path.glob(".*"))
        assert answers(*opened(saved), asked(processor, messages("is it red?", GRADIENT))) == [wanted]
        assert (
            Pipeline.from_pretrained(saved, dtype="float32").answer(GRADIENT, "is it red?", decoding=DECODING) == wanted
        )
        assert {path.suffix for path in saved.rglob("*") if path.is_file()} <= {
            ".json",
            ".safetensors",
            ".txt",
            ".jinja",
        }


@pytest.mark.parametrize("killed_at", [0, 1, 2, 7, 8, 10])
def test_a_folder_is_never_a_mixture_of_two_models(both, killed_at, tmp_path, monkeypatch):
    """Killed in the exchange, after so many parts were taken away or put in."""
    target = tmp_path / "saved"
    write(target, "opt", max_images=2)
    steps = iter(range(100))

    def until_killed(call):
        def step(*paths):
            if paths[-1].parent == target and next(steps) == killed_at:
                raise KeyboardInterrupt
            return call(*paths)

        return step

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saving, "_remove", until_killed(saving._remove))
        patch.setattr(saving.os, "replace", until_killed(saving.os.replace))
        both[0].save_pretrained(target)
    if killed_at:
        with pytest.raises((OSError, ConfigError, ValueError)):
            AutoModelForImageTextToText.from_pretrained(target)
    else:
        assert AutoModelForImageTextToText.from_pretrained(target).config.max_images == 2
    both[0].save_pretrained(target)
    assert opened(target)[0].config.max_images == both[0].config.max_images
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("arguments", [{"safe_serialization": False}, {"state_dict": {}}, {"push_to_hub": True}])
def test_what_saving_does_not_know_is_refused(both, arguments, tmp_path):
    with pytest.raises(ConfigError, match="save_pretrained"):
        both[0].save_pretrained(tmp_path / "saved", **arguments)
    assert not (tmp_path / "saved").exists()


def test_gradients_reach_what_is_trained(folder):
    model, processor = opened(folder)
    inputs = processor(GRADIENT, "is it red? Answer:", answers="no")
    model.train()(**inputs).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora" in name for name in with_gradient) and any("projection" in name for name in with_gradient)


@pytest.mark.slow
def test_transformers_trainer_trains_and_saves(folder, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model, processor = opened(folder)
    colors = ("red", "teal", "gray", "black")
    data = [(Image.new("RGB", (32, 32), color), color) for color in colors] * 4

    def collate(rows):
        prompts = ["what color? Answer:"] * len(rows)
        return dict(processor([row[0] for row in rows], prompts, answers=[row[1] for row in rows]))

    settings = TrainingArguments(
        str(tmp_path / "out"),
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=1e-2,
        logging_steps=3,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
    )
    trainer = Trainer(model, settings, train_dataset=data, data_collator=collate, processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "trained"))
    again = opened(tmp_path / "trained")[0].state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert Pipeline.from_pretrained(tmp_path / "trained", dtype="float32").answer(GRADIENT, "?") is not None
