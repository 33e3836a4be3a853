"""TRL's SFTTrainer around transformers' class of LLaVA: its collator, its loss and its loop."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaProcessor, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.peers.adapter import LONGEST
from benchmarks.peers.cases import Case
from benchmarks.peers.llava import Llava
from benchmarks.peers.setups import Setup
from benchmarks.peers.word_tokenizer import IMAGE_WORD, word_tokenizer, words


class Trl(Llava):
    """Trains as ``SFTTrainer`` does, prompts and answers as its ``prompt`` and ``completion``.

    Gradient checkpointing, which it has by default, is off: it costs time.
    """

    ways = (LONGEST,)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        size = setup.image_size
        self.processor = LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
            word_tokenizer(setup.text["vocab_size"]),
            patch_size=setup.vision["patch_size"],
            vision_feature_select_strategy="full",
            num_additional_image_tokens=1,
            image_token=IMAGE_WORD,
        )

    def batch(self, case: Case, way: str, pictures: bool) -> Any:
        """Collate as the trainer does."""
        trainer = self._trainer(case, pictures)
        return trainer, trainer.data_collator(_examples(case, self.setup.image_size, pictures))

    def loss(self, batch: Any) -> Tensor:
        """Give the trainer's loss."""
        trainer, inputs = batch
        return trainer.compute_loss(self.model, inputs)

    def training(self, case: Case, way: str) -> Callable[[], float]:
        """Give one step of the trainer's loop, from the examples to the changed weights."""
        pace = _Pace()
        trainer = self._trainer(case, True, pace)
        thread = threading.Thread(target=pace.run, args=(trainer,), daemon=True)

        def step() -> float:
            if thread.ident is None:
                thread.start()
            else:
                pace.go.release()
            pace.done.acquire()
            if pace.error is not None:
                raise pace.error
            return pace.loss

        return step

    def _trainer(self, case: Case, pictures: bool, *callbacks: TrainerCallback) -> Any:
        examples = _examples(case, self.setup.image_size, pictures)
        arguments = SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(case.texts),
            max_steps=1000,
            learning_rate=0.0,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            max_grad_norm=1.0,
            max_length=None,
            gradient_checkpointing=False,
            bf16=self.setup.dtype == "bfloat16",
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        return SFTTrainer(
            self.model,
            arguments,
            train_dataset=Dataset.from_list(examples),
            processing_class=self.processor,
            callbacks=list(callbacks),
        )


class _Pace(TrainerCallback):
    """Makes the trainer's loop, in a thread of its own, wait behind each step until it is asked for another."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.loss = float("nan")
        self.error: Exception | None = None

    def run(self, trainer: Any) -> None:
        """Train; what goes wrong is told to who waits."""
        try:
            trainer.train()
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self.error = error
            self.done.release()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the loss, and wait: it is logged at the end of each step."""
        self.loss = float((logs or {}).get("loss", self.loss))
        self.done.release()
        self.go.acquire()


def _examples(case: Case, size: int, pictures: bool) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(case.images)]
    place = f"{IMAGE_WORD} " if pictures else ""
    return [
        {
            "images": [images[text.image]] if pictures else [],
            "prompt": place + words(text.prompt),
            "completion": words(text.answer),
        }
        for text in case.texts
    ]
