"""Making the shards of a tree: alone, or as one of several processes."""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from gitllm_plugin.common.processes import map_in_order
from gitllm_plugin.m3it.scan import Part
from gitllm_plugin.m3it.shards.finish import drop_finished, finish_split, remove_work
from gitllm_plugin.m3it.shards.format import SplitManifest
from gitllm_plugin.m3it.shards.plan import Settings, SplitPlan, choose_share, make_plan
from gitllm_plugin.m3it.shards.write import PartTask, make_part
from gitllm_plugin.m3it.tables import open_table
from gitllm_plugin.m3it.tree import Tree


def make_shards(
    tree: Tree,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
    on_start: Callable[[int], object] = lambda total: None,
    on_progress: Callable[[int], object] = lambda done: None,
) -> dict[tuple[str, str], SplitManifest]:
    """Makes the shards that are not there yet. It can be killed and called again; the result has the same bytes.

    Args:
        tree: the files.
        out: the folder of the shards.
        settings: what changes their bytes.
        workers: number of processes, which changes nothing but the time.
        share: which of how many processes this is, from 0. With more than one, splits are not finished: call
            :func:`gitllm_plugin.m3it.shards.finish.merge` when all are done.
        on_start: is told how many bytes are to be read.
        on_progress: is told how many bytes more were read.

    Returns:
        The splits that were finished.

    Raises:
        ConfigError: if ``out`` holds shards that were made with other settings.
        DataError: if a file cannot be read at all.
    """
    drop_finished(out)
    plans = make_plan(tree, out, settings)
    unfinished = {id(plan): set(plan.unfinished()) for plan in plans}
    todo = [(plan, number) for plan, number in choose_share(plans, share) if number in unfinished[id(plan)]]
    on_start(round(sum(plan.weights[number] for plan, number in todo)))
    finished: dict[tuple[str, str], SplitManifest] = {}
    waiting = [plan for plan in plans if not plan.is_done] if share[1] == 1 else []
    results = map_in_order(make_part, _make_tasks(tree, todo, settings), workers)
    for (plan, number), done in zip(todo, results, strict=True):
        on_progress(done)
        unfinished[id(plan)].discard(number)
        while waiting and not unfinished[id(waiting[0])]:  # parts end in order, so splits do too
            _finish(out, waiting.pop(0), finished)
    for plan in waiting:
        _finish(out, plan, finished)
    remove_work(out)
    return finished


def _finish(out: Path, plan: SplitPlan, finished: dict[tuple[str, str], SplitManifest]) -> None:
    key = plan.files.config, plan.files.split
    finished[key] = finish_split(out, *key)


def _make_tasks(tree: Tree, todo: list[tuple[SplitPlan, int]], settings: Settings) -> Iterator[PartTask]:
    """The parts with the number of their first line, which is counted file by file as they are needed."""
    for _, parts in groupby(todo, key=lambda item: (id(item[0]), item[0].ranges[item[1]][0])):
        same = list(parts)
        plan, file = same[0][0], same[0][0].ranges[same[0][1]][0]
        path, reader = plan.files.paths[file], plan.files.readers[file]
        first_lines = open_table(path).first_lines([plan.ranges[number][1] for _, number in same])
        for (_, number), first_line in zip(same, first_lines, strict=True):
            _, start, end = plan.ranges[number]
            part = Part(path, tree.relative(path), reader, start, end, first_line, round(plan.weights[number]))
            yield PartTask(part, plan.work, number, settings)
