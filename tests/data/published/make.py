"""Makes the reference numbers of this folder with the published GIT-LLM implementation itself.

It is not run by the tests. It needs an environment of its own, since that implementation runs on libraries of 2023::

    pip install torch "transformers==4.33.3" "peft==0.6.2" "numpy<2"
    git clone https://github.com/turingmotors/heron        # commit 883cd7c
    python tests/data/published/make.py heron tests/data/published

Each folder holds `config.json`, `weights.safetensors` and `forward.safetensors`: inputs, logits at text positions,
loss, some gradients and generated tokens, for whole rows (`full/`) and rows padded on the right (`rightpad/`).

GPT-NeoX differs from what was published in one thing: transformers 4.33 applies a causal buffer of its own behind the
mask it is given, so that image tokens saw only earlier ones there. It is opened here, as GIT's rule wants it.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

TEXT, NEW_TOKENS = 8, 5
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 96}
SIZES = {
    "opt": {**LLAMA, "ffn_dim": 32, "word_embed_proj_dim": 8, "dropout": 0.0, "init_std": 0.3},
    "llama": {**LLAMA, "intermediate_size": 32, "num_key_value_heads": 2, "initializer_range": 0.3},
    "mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 96},
    "gpt_neox": {**LLAMA, "intermediate_size": 32, "rotary_pct": 0.5, "initializer_range": 0.3},
}
CASES = [(family, frames, False) for family in SIZES for frames in (1, 3)] + [("opt", 1, True), ("llama", 1, True)]
KEPT_GRADIENTS = ("q_proj", "Wqkv", "query_key_value", "visual_projection", "temporal", "model.embed_positions")


def classes(family):
    """The published configuration and model of a family."""
    name = {"opt": "OPT", "llama": "Llama", "mpt": "Mpt", "gpt_neox": "GPTNeoX"}[family]
    module = __import__(f"heron.models.git_llm.git_{family}", fromlist=["x"])
    return getattr(module, f"Git{name}Config"), getattr(module, f"Git{name}ForCausalLM")


def build(family, frames, vision):
    """A random published model; several frames give it temporal embeddings."""
    config_class, model_class = classes(family)
    config = config_class(vocab_size=64, pad_token_id=1, bos_token_id=0, eos_token_id=2, **SIZES[family])
    config.set_vision_configs(num_image_with_embedding=frames, vision_model_name=vision)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "temporal" in name:
                parameter.normal_(0, 0.5)
            elif parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("attention.bias"):
                buffer.fill_(True)
    return config, model


def add_lora(model):
    """LoRA as the published code adds it: wherever the names match, the image encoder included."""
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    return model.eval()


def forward(model, pixels, ids, length, image_tokens):
    """What a batch of two texts gives, the second of ``length`` tokens."""
    mask = torch.ones_like(ids)
    mask[1, length:] = 0
    ids = ids.masked_fill(mask == 0, 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels)
    out.loss.backward()
    found = {"in/input_ids": ids, "in/attention_mask": mask, "in/pixel_values": pixels, "in/labels": labels}
    found |= {"logits": out.logits[:, image_tokens:].detach(), "loss": out.loss.detach().reshape(1)}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "lora_" not in name}
    return found | {f"grad/{n}": g for n, g in gradients.items() if any(kept in n for kept in KEPT_GRADIENTS)}


def make(family, frames, lora, vision, target):
    """Write one folder."""
    torch.manual_seed(7)
    config, model = build(family, frames, vision)
    tokens_per_frame = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    model = add_lora(model) if lora else model
    pixels = torch.randn((2, 3, 16, 16) if frames == 1 else (2, frames, 3, 16, 16))
    ids = torch.randint(3, 64, (2, TEXT))
    content = {}
    for name, length in (("full", TEXT), ("rightpad", 5)):
        found = forward(model, pixels, ids, length, frames * tokens_per_frame)
        content |= {f"{name}/{key}": value for key, value in found.items()}
    prompt = {"input_ids": ids[:1, :4], "pixel_values": pixels[:1]}
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    content["generate/greedy"] = model.generate(**prompt, **options)[:, 4:]
    target.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, target / "weights.safetensors")
    save_file({k: v.clone().contiguous() for k, v in content.items()}, target / "forward.safetensors")
    written = json.loads(config.to_json_string(use_diff=False))
    for part in (written, written["vision_config"]):
        part.pop("_name_or_path", None)
    written["vision_model_name"] = "tiny-clip"
    (target / "config.json").write_text(json.dumps(written, indent=1) + "\n")


def main():
    """Write all folders."""
    sys.path.insert(0, sys.argv[1])
    with tempfile.TemporaryDirectory() as vision:
        settings = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=8, initializer_range=0.3, **VISION)
        CLIPVisionModel(settings).save_pretrained(vision)
        for family, frames, lora in CASES:
            name = family + ("_video" if frames > 1 else "") + ("_lora" if lora else "")
            make(family, frames, lora, vision, Path(sys.argv[2]) / name)


if __name__ == "__main__":
    main()
