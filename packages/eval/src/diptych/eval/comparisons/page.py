"""One page that compares two systems or more: a table of figures, and their pictures side by side."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from diptych.eval.report.pictures import data_uri
from diptych.eval.whole_files import written_whole

_STYLE = """
body { margin: 0 auto; max-width: 90rem; padding: 2rem 1.25rem; color: #23252b; font: 16px/1.5 Georgia, serif; }
table { border-collapse: collapse; } th, td { padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid #e3e5ea; }
th { text-align: left; font-size: .85rem; color: #6b6f78; } td { text-align: right; } td:first-child { text-align: left; }
.sheets { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); margin-top: 2rem; }
img { width: 100%; } figure { margin: 0; } p { color: #6b6f78; max-width: 50rem; }
"""


def write_comparison(
    path: Path,
    title: str,
    note: str,
    figures: Mapping[str, Mapping[str, float | None]],
    sheets: Mapping[str, Image.Image],
) -> None:
    """Write a self-contained HTML page to `path`, whole or not at all.

    figures: by row, then by column; a None is a dash. sheets: a contact sheet for each system, by name.
    """
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{_shown(row.get(column))}</td>" for column in columns)
        + "</tr>\n"
        for name, row in figures.items()
    )
    pictures = "".join(
        f'<figure><h2>{html.escape(name)}</h2><img src="{data_uri(_png(sheet), shrink=False)}" alt="{html.escape(name)}"></figure>\n'
        for name, sheet in sheets.items()
    )
    text = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n<p>{html.escape(note)}</p>\n"
        f'<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>\n<div class="sheets">\n{pictures}</div>\n'
        "</body>\n</html>\n"
    )
    with written_whole(path) as file:
        file.write(text.encode())


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
