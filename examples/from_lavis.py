"""Use a GIT-LLM from code that is written for LAVIS: registries, processors, ``generate``, ``predict_answers``.

python examples/from_lavis.py cat.jpg "what is the cat doing?" --model-type tiny_opt
"""

import argparse
import sys
from collections.abc import Sequence

import gitllm_plugin

gitllm_plugin.register()  # before the first import of LAVIS

from lavis.models import load_model_and_preprocess  # noqa: E402

from gitllm_plugin.errors import exit_status  # noqa: E402
from gitllm_plugin.m3it.pictures import open_picture  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """One picture, one question."""
    parser = argparse.ArgumentParser(description="Ask a GIT-LLM through LAVIS.")
    parser.add_argument("picture")
    parser.add_argument("question")
    parser.add_argument("--model-type", default="tiny_opt", help="a random one by default, to try the script")
    args = parser.parse_args(argv)

    picture = open_picture(args.picture)  # as RGB
    model, image_processors, text_processors = load_model_and_preprocess("git_llm", args.model_type, is_eval=True)
    assert image_processors is not None and text_processors is not None  # the model type's YAML names them
    samples = {
        "image": image_processors["eval"](picture)[None].to(model.device),
        "text_input": [text_processors["eval"](args.question)],
    }
    print("answer: ", model.predict_answers(samples, max_len=10)[0])
    print("sampled:", model.generate(samples, use_nucleus_sampling=True, num_captions=2, max_length=10))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
