"""Take a trained model elsewhere: one folder, read by this package and, in parts, by transformers and PEFT alone.

python examples/export_and_load.py output/own_pictures/latest my-model
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gitllm_plugin.common.files import check_new_folder
from gitllm_plugin.errors import exit_status
from gitllm_plugin.host.export import export_run
from gitllm_plugin.modeling import load_folder, save_folder
from gitllm_plugin.modeling.folder import LORA, has_lora
from gitllm_plugin.modeling.lora import merge_lora


def main(argv: Sequence[str] | None = None) -> int:
    """Export a run, read it again, and write it with LoRA merged."""
    parser = argparse.ArgumentParser(description="Export a training run, load it, merge its LoRA.")
    parser.add_argument("run", help="a run's folder or checkpoint")
    parser.add_argument("target", help="folder to make; another, TARGET-merged, holds the merged model")
    args = parser.parse_args(argv)
    target = Path(args.target)
    merged = check_new_folder(target.with_name(f"{target.name}-merged"))

    export_run(args.run, target)  # what `gitllm export` does
    loaded = load_folder(target)  # needs neither LAVIS nor the run
    print(f"{target}: {sum(p.numel() for p in loaded.model.parameters()):,} parameters, settings {loaded.settings}")

    # The parts are plain models of transformers and PEFT.
    from transformers import AutoModelForCausalLM

    decoder = AutoModelForCausalLM.from_pretrained(target / "language_model")
    if (target / LORA).is_dir():
        from peft import PeftModel

        decoder = PeftModel.from_pretrained(decoder, str(target / LORA))
    print(f"{target / 'language_model'}: {type(decoder).__name__}")

    if has_lora(loaded.model):
        merge_lora(loaded.model.language_model)
    save_folder(
        loaded.model,
        merged,
        tokenizer=loaded.tokenizer,
        image_processor=loaded.image_processor,
        settings=loaded.settings,
    )
    print(f"{merged}: with LoRA merged")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
