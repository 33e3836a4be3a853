"""Write the outputs of LAVIS's models in an environment of 2023, which the tests compare with today's.

In a Python 3.11 without this package's requirements (the versions are those that LAVIS 1.0.2 was written against)::

    pip install transformers==4.26.1 tokenizers==0.13.3 timm==0.4.12 torch==2.13.0 torchvision==0.28.0 'numpy<2' \\
        omegaconf einops iopath pandas opencv-python-headless pycocotools pycocoevalcap ftfy webdataset safetensors \\
        scipy scikit-image sentencepiece protobuf fairscale decord
    pip install --no-deps salesforce-lavis==1.0.2
    PYTHONPATH=. python -m tests.lavis_models.make_reference
"""

import json
import os
import tempfile
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "data" / "lavis_models" / "reference.json"


def main() -> None:
    """Write the reference."""
    from gitllm_plugin.common.torchvision_repair import repair_torchvision
    from gitllm_plugin.host import placeholders

    repair_torchvision()
    placeholders.install()  # spaCy is imported at the top, and not used by what is compared
    import lavis  # noqa: F401
    import torch
    import transformers

    from tests.lavis_models import folders, recipes, sizes

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    whole = {"transformers": transformers.__version__, "torch": torch.__version__, "models": {}}
    with tempfile.TemporaryDirectory() as scratch, sizes.tiny():
        os.chdir(scratch)
        folders.write_all(Path(scratch))
        torch.save({"model": {}}, "nothing.pth")
        for name, recipe in sorted(recipes.RECIPES.items()):
            if recipe.same_numbers:
                whole["models"][name] = reference(name, Path(scratch))
    REFERENCE.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def reference(name: str, folder: Path) -> dict:
    """Build, use and train one model; give what came out, and of a training that fails there the error."""
    from tests.lavis_models import recipes

    model = recipes.build(name, folder)
    result = {"parameters": recipes.fingerprint(model), "loaded": recipes.of_file(model, folder / "bert-base-uncased")}
    recipes.fill(model)
    result["used"] = recipes.use(name, model)
    if recipes.recipe_of(name).samples is not None:
        try:
            result["trained"] = recipes.train(name, model)
        except TypeError as error:
            result["not_trained"] = str(error)
    return result


if __name__ == "__main__":
    main()
