"""The page that compares two systems."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image

from diptych.eval.comparisons.page import write_comparison
from diptych.eval.report.sheet import contact_sheet


def test_the_page_holds_figures_and_sheets_and_escapes_names(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    sheets = {name: Image.new("RGB", (4, 4), colour) for name, colour in (("a<b", "red"), ("c", "blue"))}
    figures = {"l1": {"a<b": 0.0123456, "c": None}, "minutes": {"c": 3.0}, "steps": {"c": 51739}}
    write_comparison(page, "Two & two", "Equal steps.", figures, sheets)
    text = page.read_text(encoding="utf-8")
    assert "Two &amp; two" in text and "a&lt;b" in text and "a<b" not in text
    assert text.count("data:image/png;base64,") == 2
    rows = [line for line in text.splitlines() if line.startswith("<tr><td>")]
    assert "<tr><td>l1</td><td>0.01235</td><td>–</td></tr>" in text
    assert "<tr><td>minutes</td><td>–</td><td>3</td></tr>" in text and len(rows) >= 1
    assert "<td>51,739</td></tr>" in text
    assert "http" not in text and [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_sheets_stay_as_large_as_they_are(tmp_path: Path) -> None:
    sheet = Image.effect_noise((300, 200), 50)
    write_comparison(tmp_path / "index.html", "", "", {}, {"ours": sheet})
    [embedded] = re.findall(r"data:image/png;base64,([^\"]+)", (tmp_path / "index.html").read_text())
    with Image.open(io.BytesIO(base64.b64decode(embedded))) as kept:
        assert kept.size == (300, 200)


def test_a_contact_sheet_of_two_views_has_no_room_for_prompts() -> None:
    def png(colour: str) -> bytes:
        content = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(content, "PNG")
        return content.getvalue()

    rows = [{"real": png("red"), "painted": png("blue")}] * 3
    sheet = contact_sheet(rows, columns=2, tile=32, views=("real", "painted"))
    assert sheet.size == (2 * (2 * 32 + 4 + 20), 2 * (32 + 20))
    assert sheet.getpixel((10 + 16, 10 + 16)) == (255, 0, 0)
    assert sheet.getpixel((10 + 32 + 4 + 16, 10 + 16)) == (0, 0, 255)
