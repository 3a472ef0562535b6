"""Drawings of the report as inline SVG."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT, _ACCENT = "#23252b", "#6b6f78", "#2f5d8a"


def curves(stage: str, rows: Sequence[Mapping[str, float]]) -> list[Markup]:
    """A drawing per recorded quantity; what was measured on val (`val_loss`) is drawn over its `loss`."""
    recorded = dict.fromkeys(key for row in rows for key in row if key not in ("step", "learning_rate"))
    columns = [name for name in recorded if name.removeprefix("val_") == name or name[4:] not in recorded]
    drawings = []
    for column in columns:
        points, measured = (
            [(row["step"], row[name]) for row in rows if "step" in row and _is_number(row.get(name))]
            for name in (column, f"val_{column}")
        )
        if len(points) < 2:
            continue
        drawn: list[Markup] = []
        with _axes(column.replace("_", " "), f"{stage} {column}", drawn) as axes:
            axes.plot(*zip(*points, strict=True), color=_ACCENT, linewidth=1.3, label="train")
            if measured:
                axes.plot(*zip(*measured, strict=True), color=_INK, linewidth=1, marker=".", label="val")
                axes.legend(frameon=False, labelcolor=_SOFT)
        drawings += drawn
    return drawings


def cluster_sizes(sizes: Sequence[int]) -> Markup:
    """Cells per cluster by rank, the largest first, at logarithmic heights; clusters without cells are left out."""
    ranked = sorted((size for size in sizes if size > 0), reverse=True)
    drawn: list[Markup] = []
    with _axes("cells per code, by rank", "cluster sizes", drawn, width=6.6) as axes:
        axes.fill_between(range(1, len(ranked) + 1), ranked, 1, color=_ACCENT, alpha=0.25, linewidth=0)
        axes.plot(range(1, len(ranked) + 1), ranked, color=_ACCENT, linewidth=1.3)
        axes.set_yscale("log")
        # its own labels are formulas
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlim(1, max(2, len(ranked)))
    return drawn[0]


@contextlib.contextmanager
def _axes(title: str, salt: str, drawings: list[Markup], width: float = 3.3) -> Iterator[Axes]:
    """Axes to draw on; what was drawn is appended to `drawings`. The same drawing gives the same text (`salt`)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Names are no formulas: dollar signs stay dollar signs.
    style: dict[str, Any] = {
        "font.size": 8,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, 2.0), layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.set_title(title, loc="left", color=_INK, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c9cbd1")
        axes.tick_params(which="both", colors=_SOFT, length=2)
        axes.grid(axis="y", color="#eceef1", linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_yscale() == "linear":
            axes.locator_params(nbins=4)
        drawing = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(drawing, metadata=nothing)
    # Inside HTML an SVG needs neither prologue nor namespaces nor metadata.
    svg = drawing.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    drawings.append(Markup(svg))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
