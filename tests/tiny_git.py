"""A plain GIT of a few kilobytes with random weights, in the form in which transformers saves one."""

import torch
from transformers import BertTokenizerFast, GitConfig, GitForCausalLM

TEXT = "what color is the shape ? a red blue green circle square on left of big two and no yes it in"


def make_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split()]
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast(vocab=str(folder / "words.txt"))


def make_checkpoint(folder, frames=None):
    """A random GIT with its tokenizer, as the hub has them. Weights are large, so that every token matters."""
    tokenizer = make_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    vision = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = GitConfig(
        vision_config={**vision, **layers},
        **layers,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.3,
        bos_token_id=2,
        eos_token_id=3,
        num_image_with_embedding=frames,
    )
    torch.manual_seed(0)
    model = GitForCausalLM(config)
    for embedding in model.git.img_temporal_embedding if frames else ():
        torch.nn.init.normal_(embedding)
    model.save_pretrained(folder)
    return folder
