"""Random training batches of every form that a model takes, and their gradient: whole, or split as in a run."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import gitllm_plugin

gitllm_plugin.register()

from gitllm_plugin.common import ranks  # noqa: E402
from gitllm_plugin.models.git import GitForLavis  # noqa: E402
from gitllm_plugin.models.git_llm import GitLLMForLavis  # noqa: E402
from gitllm_plugin.runners import loop  # noqa: E402
from gitllm_plugin.runners.length import Position  # noqa: E402
from gitllm_plugin.runners.parallel import unwrap, whole  # noqa: E402
from gitllm_plugin.tasks.m3it import M3ITTask  # noqa: E402
from tests.tiny_git import TEXT, make_checkpoint  # noqa: E402

FAMILIES = ("tiny_opt", "tiny_llama", "tiny_mpt", "git")
WEIGHTS = ("none", "of_annotators", "below_one", "uneven")

Picture = dict[str, Any]
"""Images (float ``[F, 3, 32, 32]``, F may be 0), questions about them, their answers, and these answers' weights."""


def make_model(family: str, folder) -> nn.Module:
    """A model without dropout that reads up to three images, or plain GIT, kept in ``folder``, which reads one."""
    torch.manual_seed(0)
    if family == "git":
        checkpoint = folder if (folder / "config.json").is_file() else make_checkpoint(folder)
        return GitForLavis.from_config({"weights": str(checkpoint)}).eval()
    config = OmegaConf.load(GitLLMForLavis.default_config_path(family)).model
    model = GitLLMForLavis.from_config(OmegaConf.merge(config, {"max_images": 3, "dtype": "float32"})).eval()
    for name, parameter in model.named_parameters():
        # LoRA's second factors are zero at first, and with them the gradients of the first.
        if "lora_B" in name or "temporal" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def make_pictures(seed: int, weights: str, *, plain: bool, count: int = 6) -> list[Picture]:
    """Pictures with one to three questions each, of one to three answers; unless ``plain``, of none to three images."""
    draw, words = random.Random(seed), TEXT.split()
    generator = torch.Generator().manual_seed(seed)
    pictures = []
    for _ in range(count):
        frames = 1 if plain else draw.choice([0, 1, 1, 2, 3])
        answers = [
            [" ".join(draw.choices(words, k=draw.choice([1, 1, 2, 9]))) for _ in range(draw.randint(1, 3))]
            for _ in range(draw.randint(1, 3))
        ]
        pictures.append(
            {
                "images": torch.randn(frames, 3, 32, 32, generator=generator),
                "questions": [" ".join(draw.choices(words, k=draw.randint(1, 8))) + "?" for _ in answers],
                "answers": answers,
                "weights": [_weights(weights, len(row), draw) for row in answers],
            }
        )
    return pictures


def _weights(kind: str, count: int, draw: random.Random) -> list[float] | None:
    if kind == "none":
        return None
    if kind == "of_annotators":
        votes = [draw.randint(1, 10) for _ in range(count)]
        return [vote / sum(votes) for vote in votes]
    # The weights of a whole step may add up to less than 1; some count for nothing.
    return [draw.uniform(0, 1e-3) if kind == "below_one" else draw.choice([0.0, 0.01, 1.0, 25.0]) for _ in range(count)]


def batch_of(pictures: Sequence[Picture], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The batch in the form of LAVIS's weighted answers; None for images where no picture has any."""
    counts = torch.tensor([len(picture["images"]) for picture in pictures])
    frames = int(counts.max())
    rows = [(place, *row) for place, p in enumerate(pictures) for row in zip(p["questions"], p["answers"], strict=True)]
    batch = {
        "image": None,
        "text_input": [question for _, question, _ in rows],
        "answer": [answer for _, _, answers in rows for answer in answers],
        "n_answers": torch.tensor([len(answers) for _, _, answers in rows]),
    }
    if frames:
        images = torch.zeros(len(pictures), frames, 3, 32, 32)
        for place, picture in enumerate(pictures):
            images[place, : counts[place]] = picture["images"]
        batch |= {"image": images.to(dtype), "num_images": counts, "image_index": torch.tensor([r[0] for r in rows])}
    if pictures[0]["weights"][0] is not None:
        batch["weight"] = torch.tensor([w for picture in pictures for row in picture["weights"] for w in row])
    return batch


def random_split(pictures: Sequence[Picture], world: int, pieces: int, seed: int) -> list[list[list[Picture]]]:
    """For each rank its pieces, none of them empty."""
    draw = random.Random(seed)
    order = draw.sample(pictures, len(pictures))
    cuts = [0, *sorted(draw.sample(range(1, len(order)), world * pieces - 1)), len(order)]
    parts = [order[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    return [parts[rank * pieces : (rank + 1) * pieces] for rank in range(world)]


def plain_gradient(model: nn.Module, batch: dict[str, Any]) -> tuple[float, Tensor]:
    """Loss and gradient of one batch, by autograd alone."""
    model.zero_grad()
    loss = model(batch)["loss"]
    loss.backward()
    return loss.item(), _joined({name: p.grad for name, p in model.named_parameters()})


def loop_gradient(
    model: nn.Module, batches: Sequence[dict[str, Any]], autocast: Callable[[], Any] = contextlib.nullcontext
) -> tuple[float, Tensor]:
    """Loss that a step records, and the gradient by which it changes the weights.

    Args:
        model: as the ranks share it.
        batches: of this rank.
        autocast: of the forward pass.
    """
    kept: dict[str, Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, *unused, **also_unused):
            kept.update({name: whole(p.grad) for name, p in unwrap(model).named_parameters() if p.grad is not None})

    class Data:
        batches = staticmethod(lambda position: iter(batches))
        note = staticmethod(lambda batch: None)

    class Schedule:
        set_for = staticmethod(lambda *place: None)

    training = loop.TrainingLoop(
        task=M3ITTask(),
        model=model,
        optimizer=Keep([p for p in model.parameters() if p.requires_grad], lr=1.0),
        schedule=Schedule(),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        autocast=autocast,
        seed=1,
        accum_grad_iters=len(batches),
    )
    (record,) = training.run(Data(), Position(), len(batches))
    return record.loss, _joined({name: kept.get(name) for name, _ in unwrap(model).named_parameters()})


def _joined(gradients: dict[str, Tensor | None]) -> Tensor:
    """One vector of all that was used, in the order of names; what was not used is named by no number."""
    return torch.cat([value.detach().double().flatten() for _, value in sorted(gradients.items()) if value is not None])


class Threads:
    """Ranks that are threads of this process, of which one computes at a time, for :mod:`gitllm_plugin.runners.loop`.

    Args:
        monkeypatch: pytest's.
        world: how many ranks.
    """

    def __init__(self, monkeypatch, world: int):
        self._here = threading.local()
        self._world = world
        self._turn = threading.Lock()
        self._meeting = threading.Barrier(world, timeout=60)
        self._told: list[Any] = [None] * world
        monkeypatch.setattr(ranks, "rank", lambda: self._here.rank)
        monkeypatch.setattr(ranks, "world_size", lambda: world)
        monkeypatch.setattr(ranks, "sum_over_ranks", self._sum)
        monkeypatch.setattr(ranks, "add_over_ranks", lambda value: sum(self._exchange(value)))
        monkeypatch.setattr(ranks, "gather_objects", self._exchange)
        monkeypatch.setattr(loop, "gradients_exchanged", self._averaging)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Call ``work(rank)`` on every rank and give what each gave."""
        found: list[Any] = [None] * self._world
        errors: list[BaseException] = []

        def start(rank: int) -> None:
            self._here.rank = rank
            try:
                with self._turn:
                    found[rank] = work(rank)
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
                errors.append(error)
                self._meeting.abort()

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(self._world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return found

    def _exchange(self, value: Any) -> list[Any]:
        self._told[self._here.rank] = value
        self._meet()
        told = list(self._told)
        self._meet()
        return told

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._meeting.wait()
        finally:
            self._turn.acquire()

    def _sum(self, values: list[float], device: torch.device) -> list[float]:
        return [sum(column) for column in zip(*self._exchange(values), strict=True)]

    @contextlib.contextmanager
    def _averaging(self, model: nn.Module, exchange: bool) -> Iterator[None]:
        """Do as DDP: after the last batch, every rank has the mean of all ranks' gradients."""
        yield
        if not exchange:
            return
        own = {name: p.grad for name, p in model.named_parameters()}
        everyone = self._exchange({name: None if grad is None else grad.clone() for name, grad in own.items()})
        for name, parameter in model.named_parameters():
            used = [gradients[name] for gradients in everyone if gradients[name] is not None]
            if used:
                parameter.grad = sum(used) / self._world
