"""Makes two variants of the demonstration's language model, for the second experiment at a laptop's size.

Run it after ``make demo``: ``python -m examples.easyvqa.language_models``.
"""

import sys
from pathlib import Path

from examples.easyvqa.errors import DemoError
from examples.easyvqa.folders import replaced_folder
from examples.easyvqa.paths import Cache
from gitllm_plugin.errors import GitLLMError

LAYERS = 15
FIRST_LAYERS, RANDOM = f"smollm2-first-{LAYERS}-layers", "smollm2-random"


def make_variants(source: Path, target: Path) -> None:
    """Write the variants that do not exist yet.

    Args:
        source: the language model's folder.
        target: where their folders are made.

    Raises:
        DemoError: the language model has not been converted yet.
    """
    if not source.is_dir():
        raise DemoError(f"there is no {source}; `make demo` makes it")
    import gitllm_plugin.modeling  # noqa: F401  isort: skip - repairs torchvision, which transformers imports

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    def first_layers():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        del model.model.layers[LAYERS:]
        model.config.num_hidden_layers = LAYERS
        return model

    def random_weights():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))

    for name, make in ((FIRST_LAYERS, first_layers), (RANDOM, random_weights)):
        if (target / name).is_dir():
            print(f"  {name}: already made", flush=True)
            continue
        with replaced_folder(target / name) as folder:
            make().save_pretrained(folder)
            AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        print(f"  {name}: {target / name}", flush=True)


def main() -> int:
    """Write into the cache folder that the environment names.

    Returns:
        Exit status: 0 done, 1 after an error that was printed.
    """
    cache = Cache.from_environment()
    try:
        make_variants(cache.language_model, cache.demo)
    except GitLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
