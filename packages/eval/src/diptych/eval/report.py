"""The report: one HTML page that needs nothing else, and a contact sheet to look at."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from diptych.eval.errors import UserError

VIEWS = ("real", "reconstruction", "painted")

# How names of metrics read in a table. What is not listed keeps its name.
_LABELS = {
    "map50": "Detector mAP at IoU 0.5",
    "caption.cider_d": "Caption CIDEr-D",
    "caption.bleu_1": "Caption BLEU-1",
    "caption.bleu_2": "Caption BLEU-2",
    "caption.bleu_3": "Caption BLEU-3",
    "caption.bleu_4": "Caption BLEU-4",
    "caption.main_fact": "Captions that name the main object with its colour",
    "r_precision_judge": "R-precision by the judge",
    "r_precision_scorer": "R-precision by the scorer",
    "clip_score_judge": "CLIPScore by the judge",
    "clip_score_scorer": "CLIPScore by the scorer",
    "frechet_judge": "Fréchet distance to the real pictures, by the judge",
    "main_object": "Main object: class and colour right",
    "main_object_unseen": "Main object, pairs of class and colour unseen in training",
    "second_object": "Second object: class and colour right",
    "main_class": "Main object: class right",
    "main_color": "Main object: colour right",
    "second_class": "Second object: class right",
    "second_color": "Second object: colour right",
}
# Known not to be fractions: shown as plain numbers.
_PLAIN = re.compile(
    r"cider|loss|frechet|distance|count|length|vocabulary|steps|minutes|seconds|gib|images|learning_rate|perplexity"
)
_INK, _ACCENT = "#23252b", "#2f5d8a"


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report shows.

    metrics: per stage the (flat or nested) metrics of its JSON file; "evaluate" feeds the tables.
    targets: smallest value wanted, by "stage.metric" ("evaluate.caption.cider_d": 3.5); a target that
        starts with "x" is a share of the real pictures' figure ("x0.7").
    ceilings: what a perfect system would reach, by "stage.metric"; painted pictures have the real ones'.
    curves: per stage the history rows of its training, {"step": ..., "loss": ..., ...}.
    captions: {"image_id", "real_png", "caption", "references", "main_right"} per picture.
    pictures: {"prompt", "real", "reconstruction", "painted", "main_right"}; pictures as PNG or JPEG bytes.
    progress: what became of the same pictures during training: {"image_id", "real", "prompt", "steps"}, where steps
        are {"step", "caption" of the picture, "painted" from the prompt}.
    reconstructions: {"image_id", "real", "steps"} likewise for the image generator's training; steps are {"step",
        "painted" from the codes}.
    stages: {"name", "minutes", "peak_memory_gib"}; the memory may be None.
    """

    title: str
    profile: str
    commit: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, float | str]
    ceilings: Mapping[str, float]
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    captions: Sequence[Mapping[str, Any]]
    pictures: Sequence[Mapping[str, Any]]
    stages: Sequence[Mapping[str, Any]]
    progress: Sequence[Mapping[str, Any]] = ()
    reconstructions: Sequence[Mapping[str, Any]] = ()


def write_report(inputs: ReportInputs, path: Path | str) -> None:
    """Write the page to `path`, whole or not at all; all text from outside is escaped.

    Raises UserError for a target that is neither a number nor a share such as "x0.7".
    """
    environment = Environment(
        loader=PackageLoader("diptych.eval", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    metrics = {
        f"{stage}.{name}": value
        for stage, tree in inputs.metrics.items()
        for name, value in flatten(tree).items()
    }
    total = sum(stage["minutes"] for stage in inputs.stages)
    page = environment.get_template("report.html.j2").render(
        inputs=inputs,
        headline=_headline(inputs, metrics),
        views=VIEWS,
        comparison=_comparison(metrics),
        metrics=[(name, _shown(name, value)) for name, value in metrics.items()],
        curves={stage: _curves(stage, rows) for stage, rows in inputs.curves.items() if rows},
        parameters=flatten(inputs.parameters),
        total_minutes=total,
        longest=max((stage["minutes"] for stage in inputs.stages), default=0) or 1,
        peak=max((stage["peak_memory_gib"] or 0 for stage in inputs.stages), default=0),
        captions_right=_share_right(inputs.captions),
        pictures_right=_share_right(inputs.pictures),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[str(key)] = value
    return flat


def _headline(inputs: ReportInputs, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, target in inputs.targets.items():
        value = metrics.get(name)
        stage, metric = name.split(".", 1)
        view = metric.split(".", 1)[0]
        real = metrics.get(f"{stage}.real.{metric.removeprefix(view + '.')}") if view in VIEWS[1:] else None
        ceiling = inputs.ceilings.get(name, real)
        if isinstance(target, str):
            if not re.fullmatch(r"x\d*\.?\d+", target):
                raise UserError(
                    f"targets: '{name}' is '{target}'; write a number or a share of the real figure: x0.7"
                )
            least = float(target[1:]) * real if real is not None else None
            wanted = f"{float(target[1:]):.0%} of real"
        else:
            least, wanted = float(target), _shown(metric, target)
        rows.append(
            {
                "label": _label(metric),
                "value": _shown(metric, value),
                "target": wanted,
                "ceiling": "" if ceiling is None else _shown(metric, ceiling),
                "met": None if value is None or least is None else value >= least,
            }
        )
    return rows


def _comparison(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the table real | reconstruction | painted, for every metric that `evaluate` has of them."""
    names = list(
        dict.fromkeys(
            name.split(".", 2)[2]
            for name in metrics
            if name.startswith(tuple(f"evaluate.{view}." for view in VIEWS))
        )
    )
    return [
        (_LABELS.get(name, name), [_shown(name, metrics.get(f"evaluate.{view}.{name}")) for view in VIEWS])
        for name in names
    ]


def _label(metric: str) -> str:
    view, _, rest = metric.partition(".")
    if view in VIEWS:
        name = {"real": "Real pictures", "reconstruction": "Reconstructions", "painted": "Painted pictures"}[
            view
        ]
        label = _LABELS.get(rest, rest)
        return f"{name} · {label[0].lower() if not label.startswith(('R-', 'CLIP')) else label[0]}{label[1:]}"
    return _LABELS.get(metric, metric)


def _shown(name: str, value: Any) -> str:
    """A metric as a reader expects it: fractions in percent, CLIPScore times 100, CIDEr-D as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if math.isnan(value):
        return "–"
    if "clip_score" in name:
        return f"{value * 100:.1f}"
    if _PLAIN.search(name) or isinstance(value, int) or not 0 <= value <= 1:
        return (
            f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1 else f"{value:,.2f}"
        )
    return f"{value * 100:.1f} %"


def _share_right(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row["main_right"] for row in rows if row.get("main_right") is not None]
    return f"{sum(known)} of {len(known)}" if known else ""


def _data_uri(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _curves(stage: str, rows: Sequence[Mapping[str, float]]) -> list[Markup]:
    """One small inline SVG per recorded quantity; what was measured on val (`val_loss`) is drawn over its `loss`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    recorded = dict.fromkeys(key for row in rows for key in row if key not in ("step", "learning_rate"))
    columns = [name for name in recorded if name.removeprefix("val_") == name or name[4:] not in recorded]
    drawings = []
    for column in columns:
        lines = {
            name: [(row["step"], row[name]) for row in rows if "step" in row and _is_number(row.get(name))]
            for name in (column, f"val_{column}")
        }
        points, measured = lines.values()
        if len(points) < 2:
            continue
        # Escaped dollar signs keep matplotlib from reading names as formulas.
        style = {
            "font.size": 8,
            "svg.fonttype": "none",
            "svg.hashsalt": f"{stage} {column}",
            "text.parse_math": False,
        }
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(3.3, 2.0), layout="constrained")
            axes = figure.add_subplot()
            axes.plot(*zip(*points, strict=True), color=_ACCENT, linewidth=1.3, label="train")
            if measured:
                axes.plot(*zip(*measured, strict=True), color=_INK, linewidth=1, marker=".", label="val")
                axes.legend(frameon=False, labelcolor="#6b6f78")
            axes.set_title(column.replace("_", " "), loc="left", color=_INK, fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color("#c9cbd1")
            axes.tick_params(colors="#6b6f78", length=2)
            axes.grid(axis="y", color="#eceef1", linewidth=0.8)
            axes.set_axisbelow(True)
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
    return drawings


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def contact_sheet(
    rows: Sequence[Mapping[str, Any]], columns: int, tile: int = 128, views: Sequence[str] = VIEWS
) -> Image.Image:
    """One picture of many: the `views` side by side, `tile` pixels each, the prompt below where rows have one.

    `rows` are as `ReportInputs.pictures`. Raises UserError when there are none.
    """
    if not rows:
        raise UserError("a contact sheet needs at least one picture; run the stage that generates them")
    margin, gap = 10, 4
    lines = 3 if any("prompt" in row for row in rows) else 0
    font = ImageFont.load_default(size=13)
    cell_width = len(views) * tile + (len(views) - 1) * gap + 2 * margin
    cell_height = tile + lines * 17 + 2 * margin
    columns = min(columns, len(rows))
    sheet = Image.new("RGB", (columns * cell_width, math.ceil(len(rows) / columns) * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        left = number % columns * cell_width + margin
        top = number // columns * cell_height + margin
        for place, view in enumerate(views):
            picture = (
                Image.open(io.BytesIO(row[view]))
                .convert("RGB")
                .resize((tile, tile), Image.Resampling.LANCZOS)
            )
            sheet.paste(picture, (left + place * (tile + gap), top))
        if "prompt" in row:
            width = len(views) * tile // 7
            text = textwrap.wrap(
                f"{number + 1}. {row['prompt']}", width=width, max_lines=lines, placeholder=" …"
            )
            pen.text((left, top + tile + 4), "\n".join(text), fill=_INK, font=font)
    return sheet
