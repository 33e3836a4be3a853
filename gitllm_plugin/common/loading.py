"""Loaders whose workers end with the process, and what is asked of their batches."""

import atexit
import resource
import signal
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.protocols import HostReadingModel, offers


def leave_signals_to_the_main_process(worker_id: int) -> None:
    """Let a signal that is sent to all processes end the main process first; workers end with it.

    The main process ends them with SIGTERM too, where :func:`end_workers` could not do it otherwise, and at its exit
    a second time: that one counts.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


_FILES, _FILES_OF_A_WORKER = 40, 12

# Weakly: an iterator that nobody holds any more ends its workers by itself.
_running: weakref.WeakSet[Any] = weakref.WeakSet()


def end_workers(iterators: Iterable[Any]) -> None:
    """End the worker processes of a loader's iterators, whoever still holds these.

    An iterator ends its workers when it is deleted, but the traceback of an exception in its loop keeps it.
    """
    for iterator in iterators:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            try:
                iterator._shutdown_workers()
            # No more open files, so that what tells them to end cannot be opened. Or torch reports, meanwhile, one
            # that was killed before.
            except (OSError, RuntimeError):
                for worker in getattr(iterator, "_workers", ()):
                    worker.kill()


def _see_to_open_files(workers: int) -> None:
    """Let this process open as many files as its workers need: pipes, and one for each tensor that is handed over.

    With too few, torch fails anywhere, in threads too, or waits for ever.
    """
    needed = _FILES + _FILES_OF_A_WORKER * workers
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not workers or allowed == resource.RLIM_INFINITY or allowed >= needed:
        return
    if most == resource.RLIM_INFINITY or most >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
        return
    raise ConfigError(
        f"this process may open {allowed} files, and run.num_workers={workers} needs {needed}: run `ulimit -n 4096` in "
        "the shell before, or use run.num_workers=0"
    )


def _quiet_half_made(error: OSError) -> None:
    """End the workers of an iterator that could not be made whole: freed, it would only fail at its missing parts."""
    trace = error.__traceback__
    while trace is not None:
        made: Any = trace.tb_frame.f_locals.get("self")
        if isinstance(made, _MultiProcessingDataLoaderIter):
            made._shutdown = True
            for worker in getattr(made, "_workers", ()):
                worker.kill()  # one that is just starting has still handlers that outlive SIGTERM
        trace = trace.tb_next


# Exit functions run last in, first out: before those of multiprocessing and torch, which were imported above.
# multiprocessing's sends each worker one SIGTERM and waits for it without end; torch's forbids to end workers.
atexit.register(lambda: end_workers(tuple(_running)))


class Loader(DataLoader):
    """A loader whose workers end with the interpreter."""

    def __iter__(self) -> _BaseDataLoaderIter:
        """Make an iterator, whose workers are known to :func:`end_workers`.

        Raises:
            ConfigError: this process may open too few files for so many workers.
        """
        _see_to_open_files(self.num_workers)
        try:
            iterator = super().__iter__()
        except OSError as error:  # such as no more open files
            _quiet_half_made(error)
            raise
        _running.add(iterator)
        return iterator


def num_batches(loader: Any) -> int | None:
    """Count the batches that a loader gives; None where it does not know."""
    try:
        return len(loader)
    except TypeError:  # torch's loaders have a __len__ even where the stream behind them has none
        return None


def move_to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in ``value``, at any depth of dicts, lists and tuples, to ``device``."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: move_to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_to_device(item, device) for item in value)
    return value


def move_batch(batch: dict[str, Any], model: Any, device: torch.device) -> dict[str, Any]:
    """Move a batch to the device; entries that the model reads on the host become lists of numbers.

    Lists, because whatever is wrapped around a model moves tensors, and reading them there would wait for the device.

    Args:
        batch: as its loader gives it.
        model: not wrapped; asked whether it is a :class:`~gitllm_plugin.protocols.HostReadingModel`.
        device: the model's.
    """
    keys = set(model.host_keys()) if offers(model, HostReadingModel) else set()
    on_host = {
        key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in batch.items() if key in keys
    }
    return {**move_to_device({key: value for key, value in batch.items() if key not in keys}, device), **on_host}


def num_samples(batch: dict[str, Any]) -> int:
    """Count the examples of a batch in LAVIS's form: its texts, or the first thing that has a length."""
    if "text_input" in batch:
        return len(batch["text_input"])
    return next((len(value) for value in batch.values() if hasattr(value, "__len__")), 0)
