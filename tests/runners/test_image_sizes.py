"""Sizes of images are compared with the encoder's before the first step, those of evaluation too."""

import pytest

from gitllm_plugin.cli.main import main
from tests.small_run import write_small_run


@pytest.mark.parametrize("phase, split", [("train", "train"), ("eval", "val")])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_size_that_the_encoder_does_not_take(phase, split, dry, tmp_path, capsys):
    config = write_small_run(tmp_path)
    size = f"datasets.m3it.vis_processor.{phase}.image_size=48"
    assert main(["train", "--cfg-path", str(config), *dry, "--options", size]) == 2
    said = capsys.readouterr().err
    # Which of the evaluation's splits is told, val or test, does not matter.
    assert "datasets.m3it, split '" in said and (split in said or "test" in said)
    assert "images of 48x48 pixels, but clip_vision_model takes 32x32: set image_size: 32 in vis_processor" in said
    assert not list(tmp_path.rglob("metrics.jsonl")) and not list(tmp_path.rglob("*.pth"))


def test_sizes_of_splits_that_are_not_read_do_not_matter(tmp_path):
    config = write_small_run(tmp_path, valid_splits=[], test_splits=[], max_epoch=1)
    unread = "datasets.m3it.vis_processor.eval.image_size=48"
    assert main(["train", "--cfg-path", str(config), "--options", unread]) == 0


def test_dinov2_trains_on_the_size_that_its_processor_makes(tmp_path):
    """Its own are 32 pixels; its positions are interpolated."""
    config = write_small_run(
        tmp_path, {"model_type": "tiny_opt", "image_encoder": "tiny:dinov2"}, max_epoch=1, valid_splits=[]
    )
    sizes = [f"datasets.m3it.vis_processor.{phase}.image_size=24" for phase in ("train", "eval")]
    assert main(["train", "--cfg-path", str(config), "--options", *sizes]) == 0
    assert list(tmp_path.rglob("test_results.md"))
