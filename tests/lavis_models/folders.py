"""Tiny stand-ins for what LAVIS's models fetch by name: relative folders of those names, in a folder to work in.

Written by hand, so that an environment of 2023 and today's read the same bytes. Weights are a function of their name.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_TEXT = """
a an the of to in on and is are what how which who where color many picture question answer context yes no one
two red green blue dog cat horse bird house tree car man woman child sky sea sun stone chair table cup left right big
"""
WORDS = _TEXT.split()
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", ",", "?", ":"]
HIDDEN, HEADS = 24, 12  # the heads that LAVIS's gradient maps count on


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Give numbers, float32, that depend on the name and the shape alone."""
    seed = np.frombuffer(name.encode(), np.uint8).astype(np.uint64)
    generator = np.random.Generator(np.random.PCG64(seed.tolist()))
    scale = 0.5 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1
    base = 1.0 if name.lower().endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")) else 0.0
    return (base + scale * generator.standard_normal(shape)).astype(np.float32)


def med_config(layers: int, **more) -> dict:
    """Give the configuration of LAVIS's text encoders and decoders, tiny and without dropout."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 2 * HIDDEN,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": len(BERT_TOKENS),
        "encoder_width": HIDDEN,
        **more,
    }


def write_all(folder: Path) -> None:
    """Write every folder and configuration file that the recipes name."""
    _write_bert(folder / "bert-base-uncased")
    _write_opt(folder / "tiny-opt")
    _write_gpt2(folder / "gpt2")
    _write_llama(folder / "tiny-llm")
    for name in ("tiny-t5", "google/t5-large-lm-adapt"):
        _write_t5(folder / name)
    vocabulary = len(BERT_TOKENS) + 2  # [DEC] and [ENC]
    files = {
        "med_pretrain.json": med_config(2, add_type_embeddings=False, add_cross_attention=True),
        "med.json": med_config(2, add_type_embeddings=False, add_cross_attention=True, vocab_size=vocabulary),
        "med_albef.json": med_config(8, add_type_embeddings=False, add_cross_attention=True, fusion_layer=6),
        "med_alpro.json": med_config(8, add_type_embeddings=True, add_cross_attention=False, fusion_layer=6),
    }
    for name, config in files.items():
        (folder / name).write_text(json.dumps(config))


def _write_bert(folder: Path) -> None:
    folder.mkdir(parents=True)
    config = med_config(2)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(BERT_TOKENS) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 64}))
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], HIDDEN),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **_norm("embeddings.LayerNorm"),
    }
    for layer in range(config["num_hidden_layers"]):
        place = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{place}.{part}.weight": (HIDDEN, HIDDEN), f"{place}.{part}.bias": (HIDDEN,)}
        shapes |= {f"{place}.intermediate.dense.weight": (2 * HIDDEN, HIDDEN)}
        shapes |= {f"{place}.intermediate.dense.bias": (2 * HIDDEN,)}
        shapes |= {f"{place}.output.dense.weight": (HIDDEN, 2 * HIDDEN), f"{place}.output.dense.bias": (HIDDEN,)}
        shapes |= _norm(f"{place}.attention.output.LayerNorm") | _norm(f"{place}.output.LayerNorm")
    shapes = {f"bert.{name}": shape for name, shape in shapes.items()}
    shapes |= {"cls.predictions.bias": (config["vocab_size"],)}
    shapes |= {"cls.predictions.transform.dense.weight": (HIDDEN, HIDDEN)}
    shapes |= {"cls.predictions.transform.dense.bias": (HIDDEN,)} | _norm("cls.predictions.transform.LayerNorm")
    _save(folder, shapes)


def _norm(place: str) -> dict[str, tuple[int, ...]]:
    """Name a norm's weights as the published file of BERT does."""
    return {f"{place}.gamma": (HIDDEN,), f"{place}.beta": (HIDDEN,)}


def _write_opt(folder: Path) -> None:
    tokens = _write_byte_tokenizer(folder, pad="<pad>", add_bos_token=True)
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": tokens,
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": 2 * HIDDEN,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "do_layer_norm_before": True,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = {"embed_tokens": (tokens, HIDDEN), "embed_positions": (66, HIDDEN)}
    _save(folder, {f"model.decoder.{name}.weight": shape for name, shape in names.items()})


def _write_gpt2(folder: Path) -> None:
    tokens = _write_byte_tokenizer(folder)
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": tokens,
        "n_embd": HIDDEN,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _save(folder, {"transformer.wte.weight": (tokens, HIDDEN), "transformer.wpe.weight": (64, HIDDEN)})


def _write_llama(folder: Path) -> None:
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    merges = [("▁", "a"), ("r", "e"), ("re", "d")]
    tokens += ["".join(pair) for pair in merges]
    kinds = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [" ".join(pair) for pair in merges], "byte_fallback": True}
    whole = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token, **kinds} for i, token in enumerate(tokens[:3])],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {**model, "unk_token": "<unk>", "fuse_unk": True},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    about = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _save(folder, {"model.embed_tokens.weight": (len(tokens), HIDDEN), "lm_head.weight": (len(tokens), HIDDEN)})


def _write_byte_tokenizer(folder: Path, pad: str | None = None, **more) -> int:
    folder.mkdir(parents=True)
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [chr(256 + i) for i in range(256 - len(printable))]
    tokens = ["<pad>", "</s>", *map(chr, printable), *others]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("Ġ", "the")]
    tokens += ["".join(pair) for pair in merges]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"} | ({"pad_token": pad} if pad else {})
    about = {"tokenizer_class": "GPT2Tokenizer", "errors": "replace", **special, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return len(tokens)


def t5_config(tokens: int) -> dict:
    """Give a tiny T5 of Flan's form: a gated feed-forward part, and a head of its own."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": tokens,
        "d_model": HIDDEN,
        "d_kv": 6,
        "d_ff": 2 * HIDDEN,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "relative_attention_num_buckets": 8,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def t5_tokens() -> list[str]:
    """List the pieces of the tiny T5."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    return ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS if len(word) > 1), *letters, *".,?:"]


def _write_t5(folder: Path) -> None:
    folder.mkdir(parents=True)
    tokens = t5_tokens()
    (folder / "config.json").write_text(json.dumps(t5_config(len(tokens))))
    metaspace = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    special = {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    single = [{"Sequence": {"id": "A", "type_id": 0}}, end]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, end]
    kinds = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **kinds} for i, token in enumerate(tokens[:3])],
        "normalizer": None,
        "pre_tokenizer": metaspace,
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special},
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[token, -float(i)] for i, token in enumerate(tokens)]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    about = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"pad_token": "<pad>"}))
    _save(folder, {"shared.weight": (len(tokens), HIDDEN), "lm_head.weight": (len(tokens), HIDDEN)})


def _save(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = {name: numbers(name, shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
