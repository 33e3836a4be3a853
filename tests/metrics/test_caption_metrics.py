"""COCO's caption metrics: the numbers of pycocoevalcap's own evaluation, and what happens where a part is missing."""

import json

import pytest

from gitllm_plugin.metrics import CAPTION_METRICS, captions, score, score_captions
from gitllm_plugin.metrics.captions import BLEU, PTB, TREEBANK, has_java

pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
needs_java = pytest.mark.skipif(not has_java(), reason="needs Java")

PREDICTIONS = [
    "A man's riding a horse (brown) on the beach.",
    "two dogs, playing with a red ball",
    "a plate of food",
    "",
    "a street sign that isn't readable",
]
REFERENCES = [
    ["a man riding a horse on a beach", "A person rides a brown horse near the ocean."],
    ["Two dogs play with a ball.", "dogs playing in the grass", "two brown dogs and a red ball"],
    ["a plate of food on a table", "some food; on a plate"],
    ["an empty room"],
    ["a street sign", "The sign isn't readable!"],
]
IN_PYTHON = (*BLEU, "rouge_l_coco", "cider")


def original_evaluation(folder, names):
    """COCOEvalCap as COCO's own script uses it, on files, with the scorers ``names`` alone."""
    from pycocoevalcap import eval as original
    from pycocotools.coco import COCO

    annotations = [
        {"image_id": n, "id": 10 * n + k, "caption": text}
        for n, row in enumerate(REFERENCES)
        for k, text in enumerate(row)
    ]
    images = [{"id": n} for n in range(len(REFERENCES))]
    (folder / "gt.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    results = [{"image_id": n, "caption": text} for n, text in enumerate(PREDICTIONS)]
    (folder / "results.json").write_text(json.dumps(results))
    coco = COCO(str(folder / "gt.json"))
    evaluation = original.COCOEvalCap(coco, coco.loadRes(str(folder / "results.json")))

    class Absent:
        def method(self):
            return "absent"

        def compute_score(self, gts, res):
            return 0.0, [0.0] * len(gts)

    with pytest.MonkeyPatch.context() as patch:
        for scorer in {"Meteor", "Spice"} - set(names):
            patch.setattr(original, scorer, Absent)
        evaluation.evaluate()
    return evaluation


@needs_java
def test_scores_are_those_of_cocos_own_evaluation(tmp_path):
    expected = original_evaluation(tmp_path, names=())
    scores = score_captions(PREDICTIONS, REFERENCES, IN_PYTHON)
    assert scores.tokenizer == PTB and scores.skipped == {}
    for name, theirs in zip(IN_PYTHON, ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"), strict=True):
        assert scores.over_all[name] == pytest.approx(expected.eval[theirs], abs=1e-6)
        each = [expected.imgToEval[n][theirs] for n in range(len(PREDICTIONS))]
        assert scores.by_example[name] == pytest.approx(each, abs=1e-6)
    assert 0.5 < scores.over_all["cider"] < 10


@needs_java
@pytest.mark.slow
def test_meteor_is_that_of_cocos_own_evaluation(tmp_path):
    expected = original_evaluation(tmp_path, names=("Meteor",))
    scores = score_captions(PREDICTIONS, REFERENCES, ["meteor"])
    assert scores.over_all["meteor"] == pytest.approx(expected.eval["METEOR"], abs=1e-6)
    each = [expected.imgToEval[n]["METEOR"] for n in range(len(PREDICTIONS))]
    assert scores.by_example["meteor"] == pytest.approx(each, abs=1e-6)
    assert scores.over_all["meteor"] > 0.1


@needs_java
def test_whatever_ends_a_line_does_not_move_captions_to_other_images():
    broken = [f"{text}\r\nmore\u2028words\x85here" for text in PREDICTIONS]
    joined = [f"{text} more words here" for text in PREDICTIONS]
    assert score_captions(broken, REFERENCES, IN_PYTHON) == score_captions(joined, REFERENCES, IN_PYTHON)


def test_without_java_the_metrics_in_python_are_computed_and_the_tokenizer_is_named(monkeypatch):
    with_java = score_captions(PREDICTIONS, REFERENCES, IN_PYTHON) if has_java() else None
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    scores = score(["rouge_l", *CAPTION_METRICS], PREDICTIONS, REFERENCES)
    assert set(scores.over_all) == {"rouge_l", *IN_PYTHON}
    assert scores.tokenizer == TREEBANK
    assert set(scores.skipped) == {"meteor", "spice"}
    assert "needs Java" in scores.skipped["meteor"] and "default-jre-headless" in scores.skipped["meteor"]
    if with_java is not None:
        assert scores.over_all["cider"] == pytest.approx(with_java.over_all["cider"], rel=0.2)


def test_spice_does_not_download_by_itself():
    if not captions._spice_models().is_file():
        assert "get_stanford_models" in score(["spice"], PREDICTIONS, REFERENCES).skipped["spice"]


def test_without_pycocoevalcap_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    assert "pip install 'gitllm-plugin[eval]'" in score(["cider"], PREDICTIONS, REFERENCES).skipped["cider"]
    with pytest.raises(ImportError, match="cider needs pycocoevalcap"):
        score_captions(PREDICTIONS, REFERENCES, ["cider"])


@pytest.mark.parametrize(
    ("predictions", "references", "metrics", "message"),
    [
        (["a"], [], ["cider"], "1 predictions, but 0 lists"),
        (["a"], [[]], ["cider"], "no references to compare with"),
        (["a"], [["a"]], ["cidre"], "no caption metric cidre; there are bleu_1"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions, references, metrics, message):
    with pytest.raises(ValueError, match=message):
        score_captions(predictions, references, metrics)


@pytest.mark.parametrize("caption", ["a dog on a sofa", "a red kite", "nothing of the kind"])
def test_cider_of_one_image_is_told_and_not_a_zero(caption):
    scores = score(["bleu_1", "cider"], [caption], [["a dog on a sofa", "a red kite"]])
    assert set(scores.over_all) == {"bleu_1"} and "of one image is 0" in scores.skipped["cider"]
    assert scores.notes == {}


@pytest.mark.parametrize(("count", "noted"), [(2, True), (99, True), (100, False)])
def test_cider_of_few_images_has_a_note(count, noted):
    captions_ = [f"number {n} is a thing" for n in range(count)]
    scores = score(["cider", "bleu_1"], captions_, [[text] for text in captions_])
    assert scores.over_all["cider"] > 1 and scores.skipped == {}
    assert set(scores.notes) == ({"cider"} if noted else set())
    assert not noted or f"come from {count} images" in scores.notes["cider"]


def test_nothing_to_score_scores_nothing():
    assert score_captions([], [], IN_PYTHON).over_all == {}
