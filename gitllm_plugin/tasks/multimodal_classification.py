"""LAVIS's task ``multimodal_classification`` (ImageNet, SNLI-VE, NLVR2)."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lavis.tasks.multimodal_classification import MultimodalClassificationTask

from gitllm_plugin.protocols import ClassNamingModel, offers
from gitllm_plugin.tasks.host_task import RepairedTask, replaces

_OF_GIT_MAIN = {
    "max_length": "max_len",
    "min_length": "min_len",
    "length_penalty": "length_penalty",
    "n_segments": "segments",
}
"""Arguments that ``predict`` of some of git main's models takes -> the attributes that its task has for them."""


@replaces("multimodal_classification")
class ClassificationTask(RepairedTask, MultimodalClassificationTask):
    """Images, or images with a text, and a class; the most likely class name is the answer."""

    _data: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def build_datasets(self: Any, cfg: Any) -> dict[str, dict[str, Any]]:
        """Build the data sets, by name and split, and keep them for the model that is built next."""
        self._data = super().build_datasets(cfg)
        return self._data

    def build_model(self: Any, cfg: Any) -> Any:
        """Build the model.

        Repairs: what classes are called, models learn before an evaluation, and not before a training.
        """
        model = super().build_model(cfg)
        for splits in self._data.values():
            if "train" in splits and offers(model, ClassNamingModel):
                model.name_classes(splits["train"])
        return model

    def valid_step(self: Any, model: Any, samples: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Classify a batch.

        Repairs: git main asks with ``inspect.getargspec``, which Python 3.11 has no more, what ``predict`` takes.
        """
        takes = inspect.signature(model.predict).parameters
        options = {
            name: getattr(self, own) for name, own in _OF_GIT_MAIN.items() if name in takes and hasattr(self, own)
        }
        outputs = model.predict(samples, **options)
        if outputs is None:  # git main's models, of a batch without a picture
            return []
        predictions, ids = outputs["predictions"], samples[self.inst_id_key]
        if isinstance(predictions[0], str):
            targets = list(samples["label"])
        else:
            predictions, targets = predictions.max(1)[1].tolist(), torch.as_tensor(outputs["targets"]).tolist()
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return [
            {self.inst_id_key: number, "prediction": prediction, "target": target}
            for number, prediction, target in zip(ids, predictions, targets, strict=True)
        ]
