"""The paper's Figure 3: who was preferred, with intervals; and HUMMUS beside it."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

from diptych.eval.study.results import Hummus, Preference, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED = "#23252b", "#6d7178"
_OURS, _TIE, _OTHER = "#2f5d8a", "#dcdfe3", "#c98a4b"
_SYSTEMS = ("#2f5d8a", "#c98a4b", "#6b8f71", "#8c6bb1", "#b5545b", "#6d7178")
_SETTINGS = threading.Lock()  # matplotlib's settings belong to the whole process
TITLES = {"semantics": "Matches the caption better", "fidelity": "Looks more real"}


def draw_figure(results: Results, file_format: str) -> bytes:
    """The figure as "png" or "svg": a panel per kind of question that has answers.

    Bars are shares of answers; lines are the intervals of the two systems' shares, and the margin between them is
    written at the right. HUMMUS has a bar per system and category.
    """
    # without pyplot, so that threads of a server do not share a state
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kinds = [kind for kind in TITLES if any(row.kind == kind for row in results.preferences)]
    pairs = max((sum(row.kind == kind for row in results.preferences) for kind in kinds), default=0)
    heights = [0.55 * pairs + 0.75 for _ in kinds] + [2.6] * bool(results.hummus)
    style: dict[str, Any] = {
        "svg.fonttype": "none",  # letters as letters
        "svg.hashsalt": "study",  # the same file for the same results
        "text.parse_math": False,  # names are no formulas
        "font.size": 10,
        "text.color": _INK,
    }
    with _SETTINGS, rc_context(style):
        figure = Figure(figsize=(8, max(2.0, sum(heights) + 0.7)), layout="constrained")
        if not heights:
            figure.text(0.5, 0.5, "No answers yet", ha="center", color=_MUTED)
        else:
            axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
            for kind, axis in zip(kinds, axes, strict=False):
                _draw_preferences(axis, [row for row in results.preferences if row.kind == kind])
                axis.set_title(TITLES[kind], loc="left", fontsize=11, fontweight="bold", color=_INK)
            if results.hummus:
                _draw_hummus(axes[-1], results.hummus)
            note = f"Lines: {results.interval}"
            if results.without_flagged:
                note += "; without annotators who fail the attention checks"
            figure.supxlabel(note, fontsize=8, color=_MUTED)
        target = io.BytesIO()
        metadata = {"Date": None} if file_format == "svg" else {}
        figure.savefig(target, format=file_format, dpi=160, metadata=metadata)
    return target.getvalue()


def _draw_preferences(axis: Axes, rows: list[Preference]) -> None:
    for place, row in enumerate(rows):
        left = 0.0
        for share, color, ink in (
            (row.system_share, _OURS, "white"),
            (row.tie_share, _TIE, _INK),
            (row.other_share, _OTHER, "white"),
        ):
            axis.barh(place, share.value, left=left, height=0.62, color=color)
            if share.value >= 0.06:
                middle = left + share.value / 2
                axis.text(middle, place, f"{share.value:.0%}", ha="center", va="center", color=ink)
            left += share.value
        # each share grows from its own end, and so does its interval
        ends = (
            (row.system_share.low, row.system_share.high, _OURS, 0.37),
            (1 - row.other_share.high, 1 - row.other_share.low, _OTHER, 0.43),
        )
        for low, high, color, below in ends:
            axis.plot([low, high], [place + below] * 2, color=color, linewidth=2, clip_on=False)
        margin = row.margin
        text = f"{100 * margin.value:+.0f} [{100 * margin.low:+.0f}, {100 * margin.high:+.0f}]\nn = {row.answers}"
        axis.text(1.02, place, text, va="center", fontsize=9, color=_INK)
    axis.set_yticks(range(len(rows)), [f"{row.system}  |  tie  |  {row.other}" for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.5)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter("{x:.0%}")
    _calm(axis)


def _draw_hummus(axis: Axes, rows: tuple[Hummus, ...]) -> None:
    systems = list(dict.fromkeys(row.system for row in rows))
    categories = sorted({row.category for row in rows} - {"all"}) + ["all"]
    width = 0.8 / len(systems)
    bars = {}
    for row in rows:
        number = systems.index(row.system)
        x = categories.index(row.category) + (number - (len(systems) - 1) / 2) * width
        score = row.score
        bars[row.system] = axis.bar(
            x,
            score.value,
            width * 0.92,
            color=_SYSTEMS[number % len(_SYSTEMS)],
            yerr=[[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]],
            error_kw={"ecolor": _INK, "elinewidth": 1.6},
        )
        axis.text(
            x, score.high + 0.02, f"{score.value:.2f}", ha="center", fontsize=7, color=_INK, clip_on=False
        )
    labels = []
    for category in categories:
        # alike when the study is over
        counts = {row.items for row in rows if row.category == category}
        labels.append(
            f"{category}\nn = " + "–".join(str(count) for count in sorted({min(counts), max(counts)}))
        )
    axis.set_xticks(range(len(categories)), labels)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_ylim(0, 1.1)
    axis.set_title(
        "HUMMUS: hidden words that most annotators found",
        loc="left",
        fontsize=11,
        fontweight="bold",
        color=_INK,
    )
    # by hand: a label that begins with "_" is none for matplotlib
    axis.legend(
        [bars[name] for name in systems], systems, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    _calm(axis)


def _calm(axis: Axes) -> None:
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(length=0, colors=_INK)
