"""The statistics as a table, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gitllm_plugin.tables import Table
from gitllm_plugin.words.nearest import MEASURES
from gitllm_plugin.words.statistics import CaptionMatch, WordStatistics


def statistics_table(statistics: WordStatistics) -> Table:
    """What was found."""
    similar = statistics.similarities
    rows = [("pictures, vectors", f"{statistics.pictures:,}, {statistics.vectors:,}")]
    for measure in MEASURES:
        found = statistics.measures[measure]
        for where, match in (("", found.in_caption), (" among captions' words", found.among_captions)):
            if match is not None:
                name = f"nearest word{where} by {measure} is in the caption (in the other captions)"
                found_shares = f"{match.share:.1%} ({match.shuffled:.1%}), difference ± {match.standard_error:.1%}"
                rows.append((name, found_shares))
        token, share = found.frequent[0]
        rows.append(
            (f"different nearest words by {measure}", f"{found.distinct:,}; most frequent {token!r} {share:.0%}")
        )
    rows += [
        ("cosine to the nearest word: image vectors", f"{similar.nearest_image:.3f}"),
        ("cosine to the nearest word: random directions", f"{similar.nearest_random:.3f}"),
        ("cosine to the nearest other word: words", f"{similar.nearest_word:.3f}"),
        ("cosine of pairs: image vectors of two pictures", f"{similar.pairs_image:.3f}"),
        (
            "cosine of pairs: image vectors of one picture",
            "-" if similar.pairs_patch is None else f"{similar.pairs_patch:.3f}",
        ),
        ("cosine of pairs: words", f"{similar.pairs_word:.3f}"),
        ("cosine of pairs: image vector and word", f"{similar.pairs_image_word:.3f}"),
        (
            "effective rank: image vectors, as many words",
            f"{statistics.effective_rank_image:.1f}, {statistics.effective_rank_word:.1f}",
        ),
        ("mean length: image vectors, words", f"{statistics.norm_image:.2f}, {statistics.norm_word:.2f}"),
    ]
    return Table(("", "found"), rows)


def write_statistics(statistics: WordStatistics, folder: Path) -> list[Path]:
    """Write `statistics.json` and `statistics.png` into a folder; gives their paths."""
    content = asdict(statistics)
    del content["nearest_cosines"]
    data, figure = folder / "statistics.json", folder / "statistics.png"
    data.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    statistics_figure(statistics).savefig(figure, dpi=110)
    return [data, figure]


def statistics_figure(statistics: WordStatistics) -> Any:
    """Matches with captions against the shuffled baseline, and similarities against their controls."""
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
