"""LAVIS's task ``captioning``, for COCO, NoCaps, Flickr30k and any data set with captions."""

import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask
from lavis.tasks.captioning import CaptionTask

from gitllm_plugin.common import ranks
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.metrics import score_captions
from gitllm_plugin.tasks.host_task import RepairedTask, note_scores, replaces
from gitllm_plugin.tasks.settings import HOST_NAMES, CaptioningSettings

_DECIDING = ("cider", "bleu_4")
_PENALTIES = ("length_penalty", "repetition_penalty")
_OF_GIT_MAIN = {
    "top_p": "captions are searched for, and none is drawn",
    "temperature": "captions are searched for, and none is drawn",
    "sample_id_key": "images are told apart by image_id, or else by their row",
    "caption_key": "references are an annotation's caption",
    "load_gt_from_file": "references are those of the annotations, or of run.annotation_file",
    "img_ids": "all images of a split are captioned; name a smaller file in build_info.annotations",
}
"""Keys of git main's task -> why this one does not read them."""


@replaces("captioning")
class CaptioningTask(RepairedTask, CaptionTask):
    """Captions of images, scored as COCO's are.

    The references are those of ``run.annotation_file`` (COCO's format), else the captions that the data set's own
    annotations hold. ``run.caption_metrics`` chooses what is computed; CIDEr and BLEU-4, whose sum chooses the best
    epoch, always are.
    """

    Settings = CaptioningSettings
    annotation_file: str | None = None
    caption_metrics: tuple[str, ...] = tuple(HOST_NAMES)
    penalties: Mapping[str, float] = {}

    def __init__(
        self, num_beams: int, max_len: int, min_len: int, evaluate: bool, report_metric: bool, **_: Any
    ) -> None:
        """Repairs: git main's takes exactly one split, and options of its own."""
        BaseTask.__init__(self)
        self.num_beams, self.max_len, self.min_len = num_beams, max_len, min_len
        self.evaluate, self.report_metric = evaluate, report_metric

    @classmethod
    def setup_task(cls, cfg: Any) -> "CaptioningTask":
        """Build the task from ``cfg.run_cfg``.

        Repairs: that a package is missing is found after all captions are written.

        Raises:
            ConfigError: as of all tasks, where a score that cannot be had decides, and for what only git main reads.
        """
        wrong = [f"run.{key} is not read: {why}" for key, why in _OF_GIT_MAIN.items() if cfg.run_cfg.get(key)]
        if wrong:
            raise ConfigError("; ".join(wrong))
        task: Any = super().setup_task(cfg=cfg)
        given = {key: cfg.run_cfg.get(key) for key in _PENALTIES}
        if task.num_beams == 1:
            del given["length_penalty"]
        task.penalties = {key: value for key, value in given.items() if value is not None}
        task.annotation_file = cfg.run_cfg.get("annotation_file")
        task.caption_metrics = tuple(dict.fromkeys([*cfg.run_cfg.caption_metrics, *_DECIDING]))
        return task

    def before_evaluation(self: Any, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Find the references of a split.

        Repairs: COCO's references are downloaded and compared with, whatever data set it is.

        Raises:
            ConfigError: the model's ``generate`` has no option that is asked for.
            DataError: there are none.
        """
        super().before_evaluation(model, dataset, **kwargs)
        missing = [f"run.{key}" for key in self.penalties if key not in inspect.signature(model.generate).parameters]
        if missing:
            raise ConfigError(f"{' and '.join(missing)}: captions of {type(model).__name__} have no such option")
        self._references = None
        if self.report_metric and self.annotation_file:
            self._references = read_coco_annotations(Path(self.annotation_file).expanduser())
        elif self.report_metric:
            self._captions_of_data = [row.get("caption") for row in dataset.annotation]
            if not all(self._captions_of_data):
                raise DataError(
                    f"{type(dataset).__name__} has images without captions to compare with (this may be a test split): "
                    "give run.annotation_file, a file in COCO's format, or set run.report_metric: False"
                )

    def valid_step(self: Any, model: Any, samples: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Caption a batch.

        Repairs: images must have numbers, and samples an ``image_id`` (those of ``flickr30k`` do not).
        """
        captions = model.generate(
            samples,
            use_nucleus_sampling=False,
            num_beams=self.num_beams,
            max_length=self.max_len,
            min_length=self.min_len,
            **self.penalties,
        )
        image_ids = _plain(samples["image_id"] if "image_id" in samples else samples["index"])
        rows = [int(row) for row in _plain(samples["instance_id"] if "instance_id" in samples else samples["index"])]
        return [
            {"caption": caption, "image_id": image_id, "row": row}
            for caption, image_id, row in zip(captions, image_ids, rows, strict=True)
        ]

    def after_evaluation(
        self: Any, val_result: list[dict[str, Any]], split_name: str, epoch: Any, **kwargs: Any
    ) -> Any:
        """Write the captions in COCO's format, and score them.

        Returns:
            on every rank, LAVIS's names of the metrics -> scores, and ``agg_metrics``, CIDEr + BLEU-4.
        """
        row_of = {row["image_id"]: row.pop("row") for row in val_result}
        row_of = {image: row for part in ranks.gather_objects(row_of) for image, row in part.items()}
        path = self.save_result(
            val_result, str(registry.get_path("result_dir")), f"{split_name}_epoch{epoch}", remove_duplicate="image_id"
        )
        if not self.report_metric:
            return {"agg_metrics": 0.0}
        # Words are split and scored once: the tokenizer is a process of its own, and scores need all captions.
        metrics = None
        if ranks.rank() == 0:
            results = json.loads(Path(path).read_text())
            metrics = self._score(results, [self._references_of(row, row_of) for row in results], split_name)
        return ranks.broadcast_object(metrics)

    def _references_of(self, result: Mapping[str, Any], row_of: Mapping[Any, int]) -> list[str]:
        image_id = result["image_id"]
        if self._references is None:
            captions = self._captions_of_data[row_of[image_id]]
            return [captions] if isinstance(captions, str) else list(captions)
        if image_id not in self._references:
            raise DataError(f"{self.annotation_file} has no caption of image {image_id!r}, which was captioned")
        return self._references[image_id]

    def _score(
        self, results: Sequence[Mapping[str, Any]], references: Sequence[Sequence[str]], split_name: str
    ) -> dict[str, float]:
        scores = score_captions([row["caption"] for row in results], references, self.caption_metrics)
        for name, reason in scores.skipped.items():
            logging.warning("%s was not computed: %s", HOST_NAMES[name], reason)
        metrics = {HOST_NAMES[name]: value for name, value in scores.over_all.items()}
        # Of one image there is no CIDEr.
        metrics |= {"num_images": len(results), "agg_metrics": metrics.get("CIDEr", 0.0) + metrics["Bleu_4"]}
        notes = {HOST_NAMES[name]: note for name, note in scores.notes.items()}
        for name, note in notes.items():
            logging.warning("%s: %s", name, note)
        skipped = {HOST_NAMES[name]: reason for name, reason in scores.skipped.items()}
        remarks = {"tokenizer": scores.tokenizer, "notes": notes, "skipped_metrics": skipped}
        note_scores({split_name: {**metrics, **{name: value for name, value in remarks.items() if value}}})
        logging.info("%s; words by %s", metrics, scores.tokenizer)
        return metrics


def _plain(ids: Any) -> list[Any]:
    """Give the ids of a batch, as numbers where they are written as such."""
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return [_as_number(value) for value in values]


def _as_number(image_id: Any) -> Any:
    """Give an id as a number where it is written as one, so that one kind of them finds the other."""
    # What Python's int() takes is more: other scripts' digits; and str.isdigit() takes more than int().
    return int(image_id) if re.fullmatch("[0-9]{1,18}", str(image_id)) else image_id


def read_coco_annotations(path: Path) -> dict[Any, list[str]]:
    """Read captions by image from a file in COCO's format.

    Raises:
        ConfigError: there is no file.
        DataError: it cannot be read, or is of another format.
    """
    if not path.is_file():
        raise ConfigError(f"run.annotation_file: there is no file {path}")
    captions: dict[Any, list[str]] = {}
    try:
        for row in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
            image_id, caption = row["image_id"], row["caption"]
            if not isinstance(image_id, str | int) or isinstance(image_id, bool) or not isinstance(caption, str):
                raise TypeError("an image_id is no number and no text, or a caption no text")
            captions.setdefault(_as_number(image_id), []).append(caption)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is not in the format of COCO's captions, {{'annotations': [{{'image_id', 'caption'}}]}}: {error!r}"
        ) from error
    return captions
