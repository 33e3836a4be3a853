"""Files that are not, or not this model's, checkpoints; writing that cannot be caught half done."""

import os
import pickle

import pytest
import torch
from tiny_run import TinyModel, build_runner
from torch import nn

from gitllm_plugin.common.weights import read_checkpoint, write_checkpoint
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.checkpoints import find_resume_point
from gitllm_plugin.runners.state import load_trainable_state, trainable_state


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.pth, which does not exist"):
        build_runner(tmp_path, resume_ckpt_path=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps([1, 2])])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"checkpoint\.pth is not a checkpoint"):
        build_runner(tmp_path, resume_ckpt_path=str(path)).train()


def test_a_checkpoint_cut_short_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    write_checkpoint(path, {"model": {"a": torch.zeros(100)}})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ConfigError, match="damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path, save):
    made = tmp_path / "made"
    path = tmp_path / "checkpoint.pth"
    save({"model": {"projection.weight": Bomb(made)}}, path)
    with pytest.raises(ConfigError, match="could run code"):
        build_runner(tmp_path, resume_ckpt_path=str(path)).train()
    assert not made.exists()


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(tmp_path):
    path = tmp_path / "checkpoint.pth"
    weights = {"projection.weight": torch.zeros(8, 5), "text": torch.zeros(8), "lora": torch.zeros(1)}
    write_checkpoint(path, {"model": weights, "optimizer": {}, "epoch": 0})
    with pytest.raises(ConfigError) as raised:
        build_runner(tmp_path, resume_ckpt_path=str(path)).train()
    message = str(raised.value)
    assert "missing: projection.bias" in message
    assert "not in the model: lora" in message
    assert "shape of projection.weight: [8, 5] in the file, [8, 4] in the model" in message


def test_weights_without_training_state_cannot_be_resumed(tmp_path):
    path = tmp_path / "checkpoint.pth"
    write_checkpoint(path, {"model": trainable_state(TinyModel())})
    with pytest.raises(ConfigError, match=r"give it as model\.finetuned"):
        build_runner(tmp_path, resume_ckpt_path=str(path)).train()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    write_checkpoint(path, {"model": {"a": torch.ones(1)}})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint(path, {"model": {"a": torch.zeros(1)}, "bad": lambda: None})
    assert read_checkpoint(path)["model"]["a"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_auto_finds_the_newest_that_can_be_read(tmp_path, caplog):
    assert find_resume_point("auto", tmp_path) is None
    names = ["1/checkpoint_latest.pth", "2/checkpoints/step_00000002.pth", "2/checkpoints/step_00000003.pth", "3/a.pth"]
    for number, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(file, {"model": {}})
        os.utime(file, (number, number))
    (tmp_path / "latest").symlink_to("2")
    assert find_resume_point("auto", tmp_path) == tmp_path / "2/checkpoints/step_00000003.pth"
    damaged = tmp_path / "2/checkpoints/step_00000003.pth"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert find_resume_point("auto", tmp_path) == tmp_path / "2/checkpoints/step_00000002.pth"
    assert "step_00000003.pth is damaged" in caplog.text
    with pytest.raises(ConfigError, match="has no checkpoint that can be read"):
        find_resume_point(str(tmp_path / "3"), tmp_path)


def test_models_with_their_own_account_are_asked():
    class Model(nn.Linear):
        def trainable_state_dict(self):
            return {"only": self.bias}

        def load_trainable_state_dict(self, state, source):
            self.loaded = (state, source)

    model = Model(1, 1)
    state = {"of another model": torch.ones(1)}  # checking is theirs too
    load_trainable_state(model, state, "memory")
    assert model.loaded == (state, "memory")
