"""The hub's own client against a stand-in of the hub: a folder is written to it and opened from it by its name."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import pytest

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.push import push_folder
from tests.hf.hub import TOKEN, hub
from tests.small_run import ENVIRONMENT
from tests.tiny_folder import write_tiny_folder

# In a process of its own: the hub's address is read when its client is imported.
USE = """
import os, sys
# In the other order than a user should, which goes too where torchvision fits torch.
from transformers import AutoConfig, AutoModelForImageTextToText
try:
    AutoConfig.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "git_llm" in str(error)
else:
    raise SystemExit("transformers knows a git_llm before the package is imported")
import gitllm_plugin, gitllm_plugin.errors, torch
from PIL import Image
from gitllm_plugin.host.push import push_folder
from transformers import AutoProcessor, pipeline

print(push_folder(sys.argv[1], "ann/birds"))
model = AutoModelForImageTextToText.from_pretrained("ann/birds", dtype="float32")
processor = AutoProcessor.from_pretrained("ann/birds")
assert AutoConfig.from_pretrained("ann/birds").model_type == "git_llm"
model.push_to_hub("ann/again", private=True)
processor.push_to_hub("ann/again")
again = pipeline("image-text-to-text", model="ann/again", dtype=torch.float32)
for name, value in model.state_dict().items():
    assert torch.equal(value, again.model.state_dict()[name]), name
picture = {"type": "image", "image": Image.linear_gradient("L").convert("RGB")}
chat = [{"role": "user", "content": [picture, {"type": "text", "text": "is it red?"}]}]
[found] = again(text=chat, return_full_text=False, max_new_tokens=4)
ours = gitllm_plugin.Pipeline.from_pretrained("ann/birds", dtype="float32")
from gitllm_plugin.inference.asking import Decoding
assert found["generated_text"].strip() == ours.answer(picture["image"], "is it red?", decoding=Decoding(4))
os.environ["HF_TOKEN"] = "hf_of_another"
try:
    push_folder(sys.argv[1], "ann/not-mine")
except gitllm_plugin.errors.ConfigError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny", "tiny:qwen2")
    (folder / "README.md").write_text("# tiny\n")
    return folder


def test_a_folder_goes_to_the_hub_and_comes_back(folder, tmp_path):
    with hub() as server:
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {
            **ENVIRONMENT,
            **switches,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": TOKEN,
        }
        command = [sys.executable, "-W", "ignore", "-c", USE, str(folder)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-2000:]
    held = server.repositories["ann/birds"]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert held == files and server.private == {"ann/birds": True, "ann/again": True}
    weights = {name for name in held if name.endswith(".safetensors")}
    assert sum(asked.startswith("PUT /lfs/") for asked in server.asked) >= len(weights)
    refusal = finished.stdout.splitlines()[-1]
    assert "is written, but ann/not-mine on the model hub did not take it" in refusal and "401" in refusal


@pytest.mark.parametrize("part", ["language_model", "image_encoder"])
def test_parts_by_folders_of_this_machine_are_not_uploaded(part, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *args, **how: pytest.fail("asked the hub"))
    shutil.copytree(folder, tmp_path / "named")
    path = tmp_path / "named" / "git_llm.json"
    for place in (str(tmp_path / "part"), "models/part/v2", "~/part"):
        path.write_text(json.dumps({**json.loads(path.read_text()), part: place}))
        with pytest.raises(ConfigError, match=f"not uploaded: it names its {part.replace('_', ' ')} by a folder"):
            push_folder(tmp_path / "named", "ann/birds")
