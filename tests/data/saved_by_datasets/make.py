"""Makes the files of this folder with the `datasets` library itself (5.2.0).

It is not run by the tests. It needs an environment of its own::

    pip install datasets==5.2.0 pillow
    python tests/data/saved_by_datasets/make.py tests/data/saved_by_datasets

`dict/` is a DatasetDict in the uniform schema, its train split in two files; `images/` a Dataset whose pictures are an
Image column; `parquet/` the same as parquet, in two row groups. `rows.json` has what is in all of them.
"""

import base64
import io
import json
import sys
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture


def encode(number: int) -> bytes:
    """A small PNG of its own."""
    buffer = io.BytesIO()
    Picture.new("RGB", (8, 6), (40 * number, 90, 200)).save(buffer, format="PNG")
    return buffer.getvalue()


def main(folder: Path) -> None:
    """Writes all files."""
    pictures = [encode(number) for number in range(5)]
    rows = [
        {
            "instruction": "Answer.",
            "inputs": f"which picture? 絵 {number}",
            "outputs": f"number {number}",
            "image_base64_str": [base64.b64encode(picture).decode()],
        }
        for number, picture in enumerate(pictures)
    ]
    saved = DatasetDict({"train": Dataset.from_list(rows), "validation": Dataset.from_list(rows[:2])})
    saved.save_to_disk(str(folder / "dict"), num_shards={"train": 2, "validation": 1})
    text = Value("string")
    with_images = Dataset.from_list(
        [
            {
                **{key: row[key] for key in ("instruction", "inputs", "outputs")},
                "image": {"bytes": picture, "path": None},
            }
            for row, picture in zip(rows, pictures, strict=True)
        ],
        features=Features({"instruction": text, "inputs": text, "outputs": text, "image": Image()}),
    )
    with_images.save_to_disk(str(folder / "images"))
    (folder / "parquet").mkdir(exist_ok=True)
    with_images.to_parquet(str(folder / "parquet" / "train-00000-of-00001.parquet"), batch_size=3)
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
