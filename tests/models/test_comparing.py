"""Features, and captions ranked for pictures, of every registered model and family; LAVIS's task ``retrieval``."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

import gitllm_plugin
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host import launch

gitllm_plugin.register()

from lavis.datasets.datasets.retrieval_datasets import RetrievalEvalDataset, VideoRetrievalEvalDataset  # noqa: E402
from lavis.models import load_model  # noqa: E402
from lavis.models.blip_models.blip_outputs import BlipOutputFeatures  # noqa: E402
from lavis.processors.base_processor import BaseProcessor  # noqa: E402
from lavis.tasks.retrieval import RetrievalTask  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from gitllm_plugin.models.git import GitForLavis  # noqa: E402
from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402
from gitllm_plugin.models.retrieval import centred_cosines, merged, pairs_of, with_rest_behind  # noqa: E402
from gitllm_plugin.processors.git_llm_image import GitLLMImageEvalProcessor  # noqa: E402
from gitllm_plugin.processors.git_llm_instruction import GitLLMInstructionProcessor  # noqa: E402
from tests.tiny_git import make_checkpoint  # noqa: E402

CAPTIONS = ["a red square", "a blue circle on the left", "no", "a big green square in blue"]
MODELS = ["tiny_llama", "tiny_opt", "tiny_mpt", "tiny_gpt_neox", "git"]


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    torch.manual_seed(3)
    if request.param != "git":
        return load_model("git_llm", request.param, is_eval=True)
    folder = make_checkpoint(tmp_path_factory.mktemp("git"))
    return GitForLavis.from_config({"arch": "git", "weights": str(folder)}).eval()


@pytest.fixture(scope="module")
def llama():
    return load_model("git_llm", "tiny_llama", is_eval=True)


@pytest.fixture
def pictures():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def test_features_have_the_form_of_the_hosts(model, pictures):
    samples = {"image": pictures, "text_input": CAPTIONS[:3]}
    image, text, both = (model.extract_features(samples, mode=mode) for mode in ("image", "text", "multimodal"))
    assert all(isinstance(each, BlipOutputFeatures) for each in (image, text, both))
    assert set(image) == {"image_embeds", "image_embeds_proj"} and set(text) == {"text_embeds", "text_embeds_proj"}
    assert set(both) == {"image_embeds", "multimodal_embeds"}
    assert set(model.extract_features(samples)) == set(both)
    assert torch.equal(image.image_embeds, both.image_embeds) and len(image.image_embeds) == 3
    assert both.multimodal_embeds.shape == text.text_embeds.shape
    assert not torch.allclose(both.multimodal_embeds, text.text_embeds)  # the texts read their pictures
    for vectors in (image.image_embeds_proj[:, 0], text.text_embeds_proj[:, 0]):  # as users of BLIP take them
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    # Of a batch as of one, whatever stands beside it; and of pictures without a text.
    alone = model.extract_features({"image": pictures[1:2], "text_input": [CAPTIONS[1]]}, mode="text")
    torch.testing.assert_close(alone.text_embeds_proj[0], text.text_embeds_proj[1], atol=1e-5, rtol=1e-4)
    alone = model.extract_features({"image": pictures[1:2]}, mode="image")
    torch.testing.assert_close(alone.image_embeds_proj[0], image.image_embeds_proj[1], atol=1e-5, rtol=1e-4)
    cosines = model.compute_itc(samples)
    torch.testing.assert_close(cosines, image.image_embeds_proj[:, 0] @ text.text_embeds_proj[:, 0].T)
    assert model.compute_itc(samples, CAPTIONS).shape == (3, 4)


def test_image_embeds_are_what_the_text_reads(model, pictures):
    # Another picture's vectors in the place of its own give another picture's states.
    states = model.extract_features({"image": pictures[[0, 1, 0]], "text_input": ["a red square"] * 3})
    torch.testing.assert_close(states.multimodal_embeds[0], states.multimodal_embeds[2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(states.multimodal_embeds[0], states.multimodal_embeds[1], atol=1e-4)


def test_captions_are_ranked_by_the_loss_of_each_pair(model, pictures):
    scores = model.compute_itm({"image": pictures}, CAPTIONS)
    assert scores.shape == (3, 4)
    for row, picture in zip(scores, pictures, strict=True):
        for score, caption in zip(row, CAPTIONS, strict=True):
            with torch.no_grad():
                out = model({"image": picture[None], "text_input": [""], "text_output": [caption]})
            assert float(score) == pytest.approx(-float(out["loss"]) * out["num_supervised_tokens"], abs=2e-3)
    torch.testing.assert_close(model.compute_itm({"image": pictures[:1], "text_input": CAPTIONS}), scores[:1])


@pytest.mark.parametrize(
    ("samples", "mode", "error", "message"),
    [
        ({}, "picture", ConfigError, "mode is 'picture'; it may be 'image', 'text' or 'multimodal'"),
        ({"text_input": ["no"]}, "image", DataError, "needs images"),
        ({"image": torch.zeros(1, 3, 32, 32)}, "text", DataError, "needs texts"),
        ({"image": torch.zeros(1, 3, 32, 32)}, "multimodal", DataError, "needs texts"),
    ],
)
def test_features_without_what_they_are_of(llama, samples, mode, error, message):
    with pytest.raises(error, match=message):
        llama.extract_features(samples, mode=mode)


@pytest.fixture
def annotations(tmp_path):
    rows = []
    for n, color in enumerate(["red", "blue", "green", "yellow", "black", "white"]):
        picture = Image.new("RGB", (40 + n, 36), "gray")
        ImageDraw.Draw(picture).rectangle((n, 5, 20, 20 + n), fill=color)
        picture.save(tmp_path / f"{n}.png")
        captions = [f"a {color} square", f"it is {color}"][: 1 + n % 2]
        rows.append({"image": f"{n}.png", "caption": captions})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return rows


def split_of(tmp_path, text_processor):
    image = GitLLMImageEvalProcessor.from_config({"image_size": 32})
    return RetrievalEvalDataset(image, text_processor, str(tmp_path), [str(tmp_path / "rows.json")])


@torch.no_grad()
def reference(model, data):
    """Score every pair by a loss of its own."""
    scores = np.zeros((len(data), len(data.text)))
    for item in data:
        for n, caption in enumerate(data.text):
            caption = getattr(caption, "question", caption)
            out = model({"image": item["image"][None], "text_input": [model.prompt], "text_output": [caption]})
            scores[item["index"], n] = -float(out["loss"]) * out["num_supervised_tokens"]
    return scores


@pytest.mark.parametrize("wrapped", [False, True])
def test_all_pairs_are_scored_whatever_the_batches(llama, tmp_path, annotations, wrapped):
    data = split_of(tmp_path, GitLLMInstructionProcessor() if wrapped else BaseProcessor())
    wanted = reference(llama, data)
    for size in (1, 4):
        by_image, by_text = llama.compute_sim_matrix(DataLoader(data, batch_size=size), task_cfg={})
        np.testing.assert_allclose(by_image, wanted, atol=2e-3)
        np.testing.assert_array_equal(by_text, by_image.T)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_shortlist_is_scored_in_full_and_the_rest_stands_behind(llama, tmp_path, annotations, count):
    data = split_of(tmp_path, BaseProcessor())
    loader, wanted = DataLoader(data, batch_size=3), reference(llama, data)
    scores, by_text = llama.compute_sim_matrix(loader, task_cfg={"k_test": count})
    images = torch.cat([llama.extract_features(batch, "image").image_embeds_proj[:, 0] for batch in loader])
    texts = llama.extract_features({"text_input": data.text}, "text").text_embeds_proj[:, 0]
    cosines = centred_cosines(images, texts).numpy()
    chosen = np.zeros_like(cosines, dtype=bool)
    for row, values in enumerate(cosines):
        chosen[row, np.argsort(-values)[:count]] = True
    for column, values in enumerate(cosines.T):
        chosen[np.argsort(-values)[:count], column] = True
    assert count < 4 or chosen.mean() > 0.6
    np.testing.assert_allclose(scores[chosen], wanted[chosen], atol=2e-3)
    assert np.isfinite(scores).all() and scores[~chosen].max(initial=-1e9) < scores[chosen].min()
    for row, own, near in zip(scores, chosen, cosines, strict=True):
        rest = np.flatnonzero(~own)
        assert list(rest[np.argsort(-row[rest])]) == list(rest[np.argsort(-near[rest])])
    np.testing.assert_array_equal(by_text, scores.T)


def test_rows_of_all_ranks_make_one_table():
    rows = torch.arange(8.0).view(4, 2)
    assert torch.equal(merged([{0: rows[0], 2: rows[2]}, {3: rows[3], 1: rows[1], 0: rows[0]}], 4), rows)
    with pytest.raises(DataError, match=r"1 of the 4 pictures were in no batch \(number 3"):
        merged([{0: rows[0], 2: rows[2]}, {1: rows[1]}], 4)
    cosines = torch.tensor([[0.9, 0.1, -0.5], [0.2, 0.8, 0.3]])
    assert pairs_of(cosines, 1).tolist() == [[True, False, False], [False, True, True]]
    assert pairs_of(cosines, 9).all()
    filled = with_rest_behind(torch.tensor([[-3.0, -torch.inf, -torch.inf]]), cosines[:1])
    assert filled.argsort(descending=True).tolist() == [[0, 1, 2]]


def config_of(tmp_path, *more):
    path = tmp_path / "retrieval.yaml"
    path.write_text(
        "model: {arch: git_llm, model_type: tiny_llama}\n"
        "datasets:\n"
        "  flickr30k:\n"
        "    vis_processor: {train: {name: git_llm_image_train, image_size: 32},\n"
        "                    eval: {name: git_llm_image_eval, image_size: 32}}\n"
        "    text_processor: {train: {name: blip_caption}, eval: {name: blip_caption}}\n"
        "    build_info:\n"
        f"      annotations: {{train: {{storage: {tmp_path}/train.json}}, val: null,\n"
        f"                     test: {{storage: {tmp_path}/rows.json}}}}\n"
        f"      images: {{storage: {tmp_path}}}\n"
        "run: {task: retrieval, runner: git_llm, device: cpu, num_workers: 0, precision: fp32, seed: 1,\n"
        f"      output_dir: {tmp_path}/output, batch_size_eval: 4, batch_size_train: 4, allow_untrained: true,\n"
        "      train_splits: [train], valid_splits: [test], test_splits: [test], max_epoch: 1, init_lr: 1.0e-3}\n"
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    train = [
        {"image": row["image"], "caption": caption, "image_id": f"p{n}", "instance_id": str(n)}
        for n, row in enumerate(rows)
        for caption in row["caption"]
    ]
    (tmp_path / "train.json").write_text(json.dumps(train))
    return path, list(more)


@pytest.mark.parametrize("shortlist", [None, 2])
def test_the_hosts_task_and_data_train_and_evaluate(tmp_path, annotations, shortlist):
    path, options = config_of(tmp_path, *([f"run.k_test={shortlist}"] if shortlist else []))
    runner = launch.train(path, options)
    lines = (runner.output_dir / "evaluate.txt").read_text().splitlines()
    assert len(lines) == 2  # after the epoch, and of the best weights
    found = json.loads(lines[-1])
    model = runner.unwrap_dist_model(runner.model).eval()
    data = runner.datasets["flickr30k"]["test"] if "flickr30k" in runner.datasets else runner.datasets["test"]
    scores = model.compute_sim_matrix(DataLoader(data, batch_size=6), {"k_test": shortlist})
    again = RetrievalTask._report_metrics(*scores, data.txt2img, data.img2txt)
    assert found == again and {"txt_r1", "img_r1", "r_mean", "agg_metrics"} <= set(found)
    assert 0 < found["txt_r5"] <= 100


def test_a_shortlist_below_nothing_is_refused(tmp_path, annotations):
    path, options = config_of(tmp_path, "run.k_test=-1")
    with pytest.raises(ConfigError, match="k_test is -1"):
        launch.evaluate(path, options)


def test_videos_are_retrieved_too(tmp_path):
    class Clip(BaseProcessor):
        """LAVIS's form of a video, ``[3, F, H, W]``."""

        def __call__(self, path):
            return torch.full((3, 2, 32, 32), float(path[-1]) / 4) + torch.randn(
                3, 2, 32, 32, generator=torch.Generator().manual_seed(int(path[-1]))
            )

    rows = [{"video": f"clip{n}", "caption": [CAPTIONS[n]]} for n in range(3)]
    (tmp_path / "clips.json").write_text(json.dumps(rows))
    data = VideoRetrievalEvalDataset(Clip(), BaseProcessor(), str(tmp_path), [str(tmp_path / "clips.json")])
    config = OmegaConf.load(GitLLMForLavis.default_config_path("tiny_opt")).model
    model = GitLLMForLavis.from_config(OmegaConf.merge(config, {"max_images": 2})).eval()
    scores, _ = model.compute_sim_matrix(DataLoader(data, batch_size=2), {})
    frames = torch.stack([item["video"].transpose(0, 1) for item in data])
    torch.testing.assert_close(torch.tensor(scores), model.compute_itm({"image": frames}, data.text))
