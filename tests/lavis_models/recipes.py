"""How each model that LAVIS registers is made tiny, what it is given, and what is asked of it.

Runs in an environment of 2023 as well: nothing but torch, OmegaConf and LAVIS is imported.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf

from tests.lavis_models.folders import HIDDEN, numbers

TEXTS = ["a red dog on the chair.", "two birds in a blue sky."]
QUESTIONS = ["what color is the dog?", "how many birds are in the sky?"]
ANSWERS = ["red", "two", "blue dog"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A registered model at tiny size.

    Attributes:
        config: of ``from_config``, from the folder that holds :func:`~tests.lavis_models.folders.write_all`'s files.
        samples: what ``forward`` is given in training; None for a model that is not trained.
        uses: what else is asked of it, by name: a function of the model in evaluation mode.
        needs: package without which it cannot be, as pip knows it.
        same_numbers: whether outputs are compared with those of the old environment.
    """

    config: Callable[[Path], Mapping[str, Any]]
    samples: Callable[[], dict[str, Any]] | None
    uses: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    needs: str = ""
    same_numbers: bool = True


def pictures(name: str = "pictures", size: int = 32) -> torch.Tensor:
    """Give two pictures that depend on the name alone, float32 [2, 3, size, size]."""
    return 4 * torch.from_numpy(numbers(name, (2, 3, size, size))) * size**0.5


def captioned(size: int = 32, **more) -> dict[str, Any]:
    """Give a batch of two pictures with texts, and a place in training."""
    place = {"epoch": 0, "iters": 1, "num_iters_per_epoch": 4}
    return {"image": pictures(size=size), "text_input": list(TEXTS), "image_id": torch.tensor([3, 7]), **place, **more}


def asked(size: int = 32, **more) -> dict[str, Any]:
    """Give a batch of two pictures with questions and answers."""
    answers = {"answer": list(ANSWERS), "weight": torch.tensor([0.5, 0.5, 1.0]), "n_answers": torch.tensor([2, 1])}
    return captioned(size, **answers, text_input=list(QUESTIONS), **more)


def pairs() -> dict[str, Any]:
    """Give a batch of two pairs of pictures with a label each."""
    return captioned(image0=pictures("left"), image1=pictures("right"), label=torch.tensor([1, 0]))


def videos() -> dict[str, Any]:
    """Give two videos of three frames, float32 [2, 3, 3, 32, 32]."""
    frames = 10 * torch.from_numpy(numbers("videos", (2, 3, 3, 32, 32)))
    return {"video": frames, "text_input": list(QUESTIONS), "answers": torch.tensor([1, 2])}


class Gallery:
    """What LAVIS's retrieval task hands a model: a loader whose data set lists texts and images."""

    def __init__(self, key: str, samples: dict[str, Any]) -> None:
        self.batch = {key: samples[key]}
        self.dataset = SimpleNamespace(text=[*TEXTS, QUESTIONS[0]], image=list(range(len(samples[key]))))

    def __iter__(self):
        yield self.batch


def ranked(key: str = "image", make: Callable[[], dict[str, Any]] = captioned) -> Callable[[Any], Any]:
    """Ask for the matrices of similarity that the retrieval task asks for."""
    return lambda model: model.compute_sim_matrix(Gallery(key, make()), task_cfg=OmegaConf.create({"k_test": 2}))


def features(make: Callable[[], dict[str, Any]] = captioned, modes=("multimodal", "image", "text")) -> dict[str, Any]:
    """Ask for features of every mode."""
    return {f"features_{mode}": lambda model, mode=mode: model.extract_features(make(), mode=mode) for mode in modes}


def _med(name: str, **more) -> Callable[[Path], dict[str, Any]]:
    def config(folder: Path) -> dict[str, Any]:
        given = {"load_finetuned": True, "finetuned": str(folder / "nothing.pth"), "image_size": 32}
        return {**given, "med_config_path": str(folder / f"{name}.json"), "embed_dim": 16, "queue_size": 8, **more}

    return config


def _blip2(name: str = "", **more) -> Callable[[Path], dict[str, Any]]:
    def config(folder: Path) -> dict[str, Any]:
        given = {"load_finetuned": True, "finetuned": str(folder / "nothing.pth"), "image_size": 28}
        sizes = {"num_query_token": 4, "vit_precision": "fp32", "freeze_vit": True, "embed_dim": 16}
        return {**given, **sizes, **({f"{name}_model": str(folder / f"tiny-{name}")} if name else {}), **more}

    return config


def _alpro(**more) -> Callable[[Path], dict[str, Any]]:
    def config(folder: Path) -> dict[str, Any]:
        video = {"n_frms": 3, "image_size": 32, "patch_size": 16, "drop_path_rate": 0.0, "use_grad_ckpt": False}
        return {**_med("med_alpro")(folder), "timesformer": video, "hidden_size": HIDDEN, **more}

    return config


def _zero_shot(arch: str) -> Callable[[Path], dict[str, Any]]:
    def config(folder: Path) -> dict[str, Any]:
        med = _med("med", image_size=384)(folder)  # the size that LAVIS's gradient maps count on
        answering = {"arch": "pnp_unifiedqav2_fid", "pretrained": str(folder / "tiny-t5")}
        return {
            "model_type": "base",
            "image_question_matching_model": {"arch": "blip_image_text_matching", **med},
            "image_captioning_model": {"arch": "blip_caption", "prompt": "a picture of ", **med},
            "question_answering_model": {**answering, "t5_config_path": str(folder / "tiny-t5" / "config.json")},
        }

    return config


def _dialogue() -> dict[str, Any]:
    video = torch.from_numpy(numbers("video features", (2, 3, 10)))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    labels = torch.cat([torch.full((2, 3), -1), ids], dim=1)
    types = torch.zeros(2, 7, dtype=torch.long)
    mask = torch.ones(2, 7, dtype=torch.long)
    return {"input_ids": ids, "video_fts": video, "attn_mask": mask, "token_type_ids": types, "labels": labels}


def _contexts() -> dict[str, Any]:
    ids = torch.tensor([[[10, 11, 12, 1], [13, 14, 15, 1]]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[12, 1]])}


def _answer_of_fid(model) -> Any:
    given = _contexts()
    return model.generate(given["input_ids"], given["attention_mask"], max_length=8)


def _pnp(model) -> Any:
    # LAVIS goes on until it has so many different captions.
    sizes = {"num_captions": 2, "cap_max_length": 12, "cap_min_length": 3, "num_patches": 10, "block_num": 0}
    samples = {"image": pictures(size=384), "text_input": list(QUESTIONS)}
    return model.predict_answers(samples, max_len=5, **sizes)[0]


def _caption(make: Callable[[], dict[str, Any]] = captioned, **options) -> dict[str, Callable[[Any], Any]]:
    ways = {
        "beams": {"num_beams": 3},
        "greedy": {"num_beams": 1},
        "nucleus": {"use_nucleus_sampling": True, "top_p": 0.9, "num_beams": 1},
        "penalized": {"num_beams": 2, "repetition_penalty": 1.5},
    }
    return {
        f"captions_{way}": lambda model, how=how: model.generate(make(), max_length=12, min_length=4, **options, **how)
        for way, how in ways.items()
    }


def _answers(make, **options) -> Callable[[Any], Any]:
    return lambda model: model.predict_answers(make(), **options)


def _predict(make) -> Callable[[Any], Any]:
    return lambda model: model.predict(make())["predictions"]


def _large(**more) -> dict[str, Any]:
    return captioned(28, **more)


def _asked_large() -> dict[str, Any]:
    return asked(28, text_output=["red", "two"], prompt="question: what color? answer:")


_LABELLED = {"label": torch.tensor([2, 0])}
_MATCHES = {head: lambda model, head=head: model(captioned(), match_head=head) for head in ("itm", "itc")}
_OF_CLASSES: dict[str, Any] = {"num_classes": 3, "use_distill": True}

RECIPES: dict[str, Recipe] = {
    "albef_classification": Recipe(
        _med("med_albef", **_OF_CLASSES),
        lambda: captioned(**_LABELLED),
        {"classes": _predict(lambda: captioned(**_LABELLED))},
    ),
    "albef_feature_extractor": Recipe(_med("med_albef"), None, features()),
    "albef_nlvr": Recipe(_med("med_albef", **_OF_CLASSES), pairs, {"classes": _predict(pairs)}),
    "albef_pretrain": Recipe(_med("med_albef", mlm_mask_prob=0.5), captioned),
    "albef_retrieval": Recipe(_med("med_albef", use_distill=True), captioned, {"ranked": ranked()}),
    "albef_vqa": Recipe(_med("med_albef", use_distill=True), asked, {"answers": _answers(asked, answer_list=ANSWERS)}),
    "alpro_qa": Recipe(_alpro(num_classes=4), videos, {"classes": _predict(videos)}),
    "alpro_retrieval": Recipe(_alpro(), videos, {"ranked": ranked("video", videos)}),
    "blip2": Recipe(_blip2(), _large, {**_caption(_large), **features(_large), "ranked": ranked(make=_large)}),
    "blip2_feature_extractor": Recipe(_blip2(vit_model="clip_L"), _large, features(_large)),
    "blip2_image_text_matching": Recipe(
        _blip2(),
        None,
        {head: lambda model, head=head: model(_matching(), match_head=head) for head in ("itm", "itc")},
    ),
    "blip2_opt": Recipe(_blip2("opt", prompt="a picture of"), _large, _caption(_large)),
    "blip2_t5": Recipe(
        _blip2("t5", prompt="a picture of"),
        _asked_large,
        {
            **_caption(_large),
            "answers": _answers(_asked_large, prompt="question: {} answer:", num_beams=2),
        },
    ),
    "blip_caption": Recipe(_med("med", prompt="a picture of "), captioned, _caption()),
    "blip_classification": Recipe(
        _med("med", **_OF_CLASSES),
        lambda: captioned(**_LABELLED),
        {"classes": _predict(lambda: captioned(**_LABELLED))},
    ),
    "blip_feature_extractor": Recipe(_med("med"), None, features()),
    "blip_image_text_matching": Recipe(_med("med"), None, _MATCHES),
    "blip_nlvr": Recipe(_med("med", num_classes=2), pairs, {"classes": _predict(pairs)}),
    "blip_pretrain": Recipe(_med("med_pretrain"), captioned),
    "blip_retrieval": Recipe(_med("med", negative_all_rank=True), captioned, {"ranked": ranked()}),
    "blip_vqa": Recipe(
        _med("med"),
        asked,
        {
            "answers_ranked": _answers(asked, inference_method="rank", answer_list=ANSWERS),
            "answers_generated": _answers(asked, inference_method="generate", num_beams=3),
        },
    ),
    "clip": Recipe(
        lambda folder: {"model_type": "tiny", "pretrained": ""},
        captioned,
        {"features": lambda model: model.extract_features(captioned())},
    ),
    "clip_feature_extractor": Recipe(
        lambda folder: {"model_type": "tiny", "pretrained": ""},
        captioned,
        {"features_image": lambda model: model.extract_features({"image": pictures()})},
    ),
    "gpt_dialogue": Recipe(lambda folder: {"len_tokenizer": 270, "len_video_ft": 10}, _dialogue, same_numbers=False),
    "img2prompt_vqa": Recipe(_zero_shot("img2prompt_vqa"), None, needs="spacy", same_numbers=False),
    "pnp_unifiedqav2_fid": Recipe(
        lambda folder: _zero_shot("")(folder)["question_answering_model"],
        _contexts,
        {"answers": _answer_of_fid},
        same_numbers=False,
    ),
    "pnp_vqa": Recipe(_zero_shot("pnp_vqa"), None, {"answers": _pnp}, same_numbers=False),
}


# What git main registers besides.
OF_MAIN: dict[str, Recipe] = {
    "blip2_t5_instruct": Recipe(
        _blip2("t5", prompt="a picture of"),
        _asked_large,
        {**_caption(_asked_large), "answers": _answers(_asked_large, prompt="question: {} answer:", num_beams=2)},
        same_numbers=False,
    ),
    "blip2_vicuna_instruct": Recipe(
        _blip2("llm", prompt="a picture of"),
        _asked_large,
        {**_caption(_asked_large), "answers": _answers(_asked_large, prompt="question: {} answer:", num_beams=2)},
        same_numbers=False,
    ),
    "blip2_vicuna_xinstruct": Recipe(
        _blip2(
            "llm",
            modalities=["image"],
            load_finetuned=False,
            pretrained="nothing.pth",
            image_encoder_kwargs={"image_size": 28, "drop_path_rate": 0, "use_grad_checkpoint": False},
        ),
        _asked_large,
        _caption(_asked_large),
        same_numbers=False,
    ),
}


def recipe_of(name: str) -> Recipe:
    """Give the recipe of a model that the release or git main registers."""
    return (RECIPES | OF_MAIN)[name]


def _matching() -> dict[str, Any]:
    # One text each, of one length: LAVIS does not pad here.
    return captioned(28, text_input=["a red dog", "two blue birds"])


def build(name: str, folder: Path) -> torch.nn.Module:
    """Make the registered model from its configuration, in float32, with parameters that depend on their names alone.

    The folder must be the one that is worked in: LAVIS asks for ``bert-base-uncased`` by that name.
    """
    from lavis.common.registry import registry

    torch.manual_seed(0)
    model = registry.get_model_class(name).from_config(OmegaConf.create(dict(recipe_of(name).config(folder))))
    return model.float()


def fill(model: torch.nn.Module) -> None:
    """Give every parameter numbers of its name, and the queues of features too."""
    with torch.no_grad():
        queues = [(name, buffer) for name, buffer in model.named_buffers() if name in ("image_queue", "text_queue")]
        for name, parameter in [*model.named_parameters(), *queues]:
            parameter.copy_(torch.from_numpy(numbers(name, tuple(parameter.shape) or (1,))).view(parameter.shape))
    if hasattr(model, "model_pairs"):
        model.copy_params()


def fingerprint(model: torch.nn.Module) -> str:
    """Give a sum over the names and shapes of all parameters: tied ones count once."""
    text = "\n".join(f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters())
    return f"{zlib.crc32(text.encode()):08x}"


def of_file(model: torch.nn.Module, folder: Path) -> int:
    """Count the parameters that hold a tensor of ``bert-base-uncased``'s file: what was loaded, and not drawn."""
    from safetensors.torch import load_file

    known = {tuple(tensor.flatten()[:8].tolist()) for tensor in load_file(folder / "model.safetensors").values()}
    return sum(tuple(parameter.detach().flatten()[:8].tolist()) in known for parameter in model.parameters())


def train(name: str, model: torch.nn.Module) -> dict[str, Any]:
    """Take one step of plain gradient descent; give the loss, the gradients' size and how many parameters changed."""
    samples = recipe_of(name).samples
    assert samples is not None
    model.train()
    torch.manual_seed(1)
    batch = samples()
    output = model(**batch) if name == "pnp_unifiedqav2_fid" else model(batch)
    loss = output["loss"]
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    squares = sum(float((parameter.grad.double() ** 2).sum()) for parameter in trained)
    before = [parameter.detach().clone() for parameter in trained]
    torch.optim.SGD(trained, lr=0.1).step()
    changed = sum(not torch.equal(*pair) for pair in zip(before, trained, strict=True))
    return {"loss": float(loss), "gradients": squares**0.5, "changed": changed}


def use(name: str, model: torch.nn.Module) -> dict[str, Any]:
    """Ask all there is to be asked of the model, without gradients."""
    model.eval()
    answers = {}
    for what, ask in recipe_of(name).uses.items():
        torch.manual_seed(2)
        with torch.no_grad():
            answers[what] = brief(ask(model))
    return answers


def brief(thing: Any) -> Any:
    """Give texts as they are, and a tensor as its shape, mean, size and a few of its numbers."""
    if isinstance(thing, (str, int)) or thing is None:
        return thing
    if isinstance(thing, (list, tuple)):
        return [brief(each) for each in thing]
    if isinstance(thing, torch.Tensor) or hasattr(thing, "__array__"):
        tensor = torch.as_tensor(thing).detach().double().flatten()
        some = tensor[:: max(1, len(tensor) // 12)][:12]
        return {
            "shape": list(thing.shape),
            "mean": float(tensor.mean()),
            "size": float(tensor.pow(2).mean().sqrt()),
            "some": some.tolist(),
        }
    parts = {key: getattr(thing, key) for key in vars(thing) if not key.startswith("_")}
    return {key: brief(part) for key, part in parts.items() if part is not None}
