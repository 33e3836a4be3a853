"""Caption the pictures of a folder: python examples/caption_folder.py my-model pictures/ --out captions.jsonl"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gitllm_plugin.common.files import atomic_file
from gitllm_plugin.errors import DataError, exit_status
from gitllm_plugin.inference.pictures import find_pictures
from gitllm_plugin.m3it.pictures import open_picture


def main(argv: Sequence[str] | None = None) -> int:
    """Write a line for each picture; a picture that cannot be read is named and counted, the others go on."""
    parser = argparse.ArgumentParser(description="Caption the pictures of a folder.")
    parser.add_argument("model", help="a folder of `gitllm export`")
    parser.add_argument("pictures", help="a folder")
    parser.add_argument("--out", default="captions.jsonl", help="replaced when all is captioned, not before")
    parser.add_argument("--instruction", help="default: the model's own, else the usual one for captions")
    args = parser.parse_args(argv)

    paths = find_pictures(args.pictures)
    from gitllm_plugin.inference.pipeline import Decoding, Pipeline  # takes seconds: not before the folder is known

    pipeline = Pipeline.from_folder(args.model)
    unreadable = 0
    with atomic_file(Path(args.out)) as file:
        for path in paths:
            try:
                picture = open_picture(path)
            except DataError as error:
                print(f"skipped: {error}", file=sys.stderr)
                unreadable += 1
                continue
            caption = pipeline.answer(picture, instruction=args.instruction, decoding=Decoding(max_new_tokens=20))
            relative = path.relative_to(Path(args.pictures).expanduser())
            line = json.dumps({"image": str(relative), "caption": caption}, ensure_ascii=False)
            file.write(f"{line}\n".encode())
            print(f"{relative}: {caption}")
    print(f"written: {args.out}" + (f"; {unreadable} pictures could not be read" if unreadable else ""))
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
