"""LAVIS's tasks ``vqa`` (VQAv2, OK-VQA), ``gqa`` and ``aok_vqa``."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.tasks.vqa import AOKVQATask, GQATask, VQATask

from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.tasks.host_task import RepairedTask, note_scores, replaces
from gitllm_plugin.tasks.settings import QuestionSettings


class _QuestionTask(RepairedTask):
    Settings = QuestionSettings

    def build_datasets(self: Any, cfg: Any) -> dict[str, dict[str, Any]]:
        """Build the data sets, and find which files and answers each split brings.

        Repairs: git main looks at ``run.valid_splits`` alone, so that an evaluation of other splits has no score.
        """
        datasets = super().build_datasets(cfg)
        self.ques_files, self.anno_files, self.answer_list = {}, {}, None
        for splits in datasets.values():
            for split, data in splits.items():
                if getattr(data, "coco_fmt_qust_file", None) is not None:
                    self.ques_files[split], self.anno_files[split] = data.coco_fmt_qust_file, data.coco_fmt_anno_file
                self.answer_list = getattr(data, "answer_list", self.answer_list)
        return datasets

    def _ask(self: Any, model: Any, samples: Mapping[str, Any], **changes: Any) -> list[str]:
        """Ask the model as ``run`` says."""
        asked = {
            "answer_list": self.answer_list,
            "inference_method": self.inference_method,
            "num_beams": self.num_beams,
            "max_len": self.max_len,
            "min_len": self.min_len,
            "num_ans_candidates": self.num_ans_candidates,
            "prompt": self.prompt,
        }
        return model.predict_answers(samples=samples, **{**asked, **changes})


@replaces("vqa")
class QuestionAnsweringTask(_QuestionTask, VQATask):
    """Questions with ten annotators' answers, scored by the VQA challenge's code, which LAVIS carries."""

    @main_process
    def _report_metrics(self: Any, result_file: str, split: str) -> dict[str, Any]:
        """Repairs: without the challenge's files nothing says why there is no score."""
        if split not in self.ques_files:
            logging.warning(
                "%s are written and not scored: name the questions and annotations in the challenge's form behind the "
                "answer list of datasets.NAME.build_info.annotations.%s.storage",
                result_file,
                split,
            )
        return cast(Any, super())._report_metrics(result_file=result_file, split=split)


@replaces("gqa")
class GQAQuestionsTask(_QuestionTask, GQATask):
    """Questions with one answer, scored by exact match."""

    def build_datasets(self, cfg: Any) -> dict[str, Any]:
        """Build as in LAVIS.

        Repairs: questions without answers (the test split's) cannot be put into a batch.
        """
        datasets = super().build_datasets(cfg)
        for splits in datasets.values():
            for dataset in splits.values():
                dataset.collater = _with_missing_answers(dataset.collater)
        return datasets

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Answer a batch.

        Repairs: question ids must be numbers, and GQA's are texts.
        """
        answers = self._ask(model, samples)
        ids = [number.item() if hasattr(number, "item") else number for number in samples["question_id"]]
        return [
            {"question_id": number, "pred_ans": answer, "gt_ans": truth}
            for number, answer, truth in zip(ids, answers, samples["answer"], strict=True)
        ]

    @main_process
    def _save_result_leaderboard(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Repairs: GQA's server takes a list of predictions, not A-OKVQA's form."""
        rows = [{"questionId": str(row["question_id"]), "prediction": row["pred_ans"]} for row in results]
        write_atomically(Path(f"{registry.get_path('result_dir')}_leaderboard.json"), json.dumps(rows))


@replaces("aok_vqa")
class AOKVQAQuestionsTask(_QuestionTask, AOKVQATask):
    """Questions with ten answers and four choices; both are scored."""

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Answer a batch, and choose among the choices of each question.

        Repairs: ``run.prompt`` is not used, and choices are left out.
        """
        answers = self._ask(model, samples)
        chosen = self._ask(model, samples, answer_list=samples["choices"], inference_method="rank")
        truths = [
            None if place is None else choices[int(place)]
            for choices, place in zip(samples["choices"], samples["correct_choice_idx"], strict=True)
        ]
        columns = zip(samples["question_id"], answers, samples["direct_answers"], chosen, truths, strict=True)
        names = ("question_id", "pred_ans", "gt_ans", "pred_choice", "gt_choice")
        return [dict(zip(names, row, strict=True)) for row in columns]

    @main_process
    def _report_metrics(self: Any, result_file: str, split: str) -> dict[str, Any] | None:
        """Repairs: the accuracy of choices is not computed."""
        metrics = cast(Any, super())._report_metrics(result_file=result_file, split=split)
        results = json.loads(Path(result_file).read_text())
        if metrics is None or any(row["gt_choice"] is None for row in results):
            return metrics
        right = sum(row["pred_choice"] == row["gt_choice"] for row in results)
        choices = {"multiple_choice_acc": 100 * right / len(results)}
        note_scores(choices)
        return {**metrics, **choices}

    @main_process
    def _save_result_leaderboard(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Repairs: choices are left out."""
        rows = {
            row["question_id"]: {"direct_answer": row["pred_ans"], "multiple_choice": row["pred_choice"]}
            for row in results
        }
        write_atomically(Path(f"{registry.get_path('result_dir')}_leaderboard.json"), json.dumps(rows))


def _with_missing_answers(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Callable:
    def collate_all(samples: list[dict[str, Any]]) -> dict[str, Any]:
        if all(sample.get("answer", "") is not None for sample in samples):
            return collate(samples)
        answers = [sample["answer"] for sample in samples]
        return {**collate([{**sample, "answer": ""} for sample in samples]), "answer": answers}

    return collate_all
