"""The statistics as tables, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gitllm_plugin.common.files import atomic_path, write_atomically
from gitllm_plugin.tables import Block, Table
from gitllm_plugin.words.nearest import MEASURES
from gitllm_plugin.words.statistics import CaptionMatch, WordStatistics


def statistics_blocks(statistics: WordStatistics) -> list[Block]:
    """Say what was found, each number beside what it has to be compared with; and in words whether vectors lean."""
    blocks: list[Block] = [_matches_table(statistics), _vectors_table(statistics)]
    if all(found.in_caption is None for found in statistics.measures.values()):
        return [blocks[1], "Without captions there is no saying whether vectors lean towards the right words."]
    return [*blocks, lean_in_words(statistics)]


def lean_in_words(statistics: WordStatistics) -> str:
    """Say whether vectors are nearer to their own captions' words than to others', beyond twice the standard error."""
    matches = {name: found.among_captions for name, found in statistics.measures.items()}
    clear = [name for name, match in matches.items() if match and match.gain > 2 * match.standard_error]
    if not clear:
        return (
            "Vectors do not lean towards words of their own captions: no measure's difference, among captions' words, "
            "is beyond twice its standard error."
        )
    return (
        f"Vectors lean towards words of their own captions by {' and '.join(clear)}: the difference, among captions' "
        "words, is beyond twice its standard error."
    )


def _matches_table(statistics: WordStatistics) -> Table:
    rows = []
    for measure, found in statistics.measures.items():
        for words, match in (("all words", found.in_caption), ("captions' words", found.among_captions)):
            if match is not None:
                difference = f"{100 * match.gain:+.1f} ± {100 * match.standard_error:.1f}"
                rows.append((f"{measure}, {words}", f"{match.share:.1%}", f"{match.shuffled:.1%}", difference))
    return Table(("nearest word is in the", "own caption", "other captions", "difference"), rows, numbers=(1, 2, 3))


def _vectors_table(statistics: WordStatistics) -> Table:
    similar = statistics.similarities
    rows = [("pictures", f"{statistics.pictures:,}", "", ""), ("image vectors", f"{statistics.vectors:,}", "", "")]
    for measure in MEASURES:
        found = statistics.measures[measure]
        token, share = found.frequent[0]
        rows.append((f"different nearest words, {measure}", f"{found.distinct:,}", f"{share:.0%}", f"are {token!r}"))
    word_pairs = f"{similar.pairs_word:.3f}"
    rows += [
        ("cosine to the nearest word", f"{similar.nearest_image:.3f}", f"{similar.nearest_random:.3f}", "random ones"),
        ("", "", f"{similar.nearest_word:.3f}", "words to other words"),
        ("cosine of two pictures' vectors", f"{similar.pairs_image:.3f}", word_pairs, "two words"),
    ]
    if similar.pairs_patch is not None:
        rows.append(("cosine of one picture's vectors", f"{similar.pairs_patch:.3f}", word_pairs, "two words"))
    rows += [
        ("cosine of a vector and a word", f"{similar.pairs_image_word:.3f}", word_pairs, "two words"),
        (
            "effective rank",
            f"{statistics.effective_rank_image:.1f}",
            f"{statistics.effective_rank_word:.1f}",
            "as many words",
        ),
        ("mean length", f"{statistics.norm_image:.2f}", f"{statistics.norm_word:.2f}", "words"),
    ]
    return Table(("", "found", "beside", "of"), rows, numbers=(1, 2))


def write_statistics(statistics: WordStatistics, folder: Path) -> list[Path]:
    """Write ``statistics.json`` and ``statistics.png`` into a folder; gives their paths."""
    content = asdict(statistics)
    del content["nearest_cosines"]
    data, figure = folder / "statistics.json", folder / "statistics.png"
    write_atomically(data, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    with atomic_path(figure) as partial:
        statistics_figure(statistics).savefig(partial, dpi=110, format="png")
    return [data, figure]


def statistics_figure(statistics: WordStatistics) -> Any:
    """Draw matches with captions against the shuffled baseline, and similarities against their controls."""
    from matplotlib.figure import Figure

    matches = {
        f"{measure},\n{where}": match
        for measure, found in statistics.measures.items()
        for where, match in (("all words", found.in_caption), ("captions' words", found.among_captions))
        if match is not None
    }
    figure = Figure(figsize=(9.6 if matches else 5.2, 3.8), layout="constrained")
    axes = figure.subplots(1, 2 if matches else 1, squeeze=False)[0]
    axes[0].set(title="similarity to the nearest word", xlabel="cosine", ylabel="density")
    for name, values in statistics.nearest_cosines.items():
        axes[0].hist(values, bins=40, density=True, histtype="stepfilled", alpha=0.5, label=name)
    axes[0].legend(fontsize=8)
    if matches:
        _draw_matches(axes[1], matches)
    return figure


def _draw_matches(axis: Any, matches: Mapping[str, CaptionMatch]) -> None:
    places = range(len(matches))
    shares = [100 * match.share for match in matches.values()]
    shuffled = [100 * match.shuffled for match in matches.values()]
    errors = [100 * match.standard_error for match in matches.values()]
    axis.bar([place - 0.2 for place in places], shares, 0.4, yerr=errors, capsize=3, label="own caption")
    axis.bar([place + 0.2 for place in places], shuffled, 0.4, label="other captions")
    axis.margins(y=0.3)
    axis.set(title="nearest word occurs in the caption", ylabel="% of vectors")
    axis.set_xticks(list(places), list(matches), fontsize=8)
    axis.legend(fontsize=8)
