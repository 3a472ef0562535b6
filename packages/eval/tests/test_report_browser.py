"""The page in a real browser: on a phone and on a desk nothing is wider than the window."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from waiting import HANG_SECONDS

from diptych.eval.figures import Figure, figures_json, not_run
from diptych.eval.report.marks import Mark
from diptych.eval.report.page import ReportInputs, write_report

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install Debian's package chromium"
)
LONG = "a_name_without_any_place_to_break_it_" * 4
# Put into a copy of the page: what is wider than the window without a container that scrolls it.
MEASURE = """
<script>
const wide = [...document.querySelectorAll("body *")].filter(element => !element.closest(".scroll, svg")
  && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
parent.document.title = JSON.stringify({window: innerWidth, page: document.documentElement.scrollWidth,
  wide: wide.map(element => element.tagName + " " + element.className)});
</script>
"""


def encoded(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section and names that do not break."""
    picture = {"real": encoded("red"), "reconstruction": encoded("orange"), "painted": encoded("blue")}
    painted: dict[str, Any] = {
        "image_id": "1",
        "prompt": f"a red kite {LONG}",
        "right": True,
        "score": 2.0,
        **picture,
    }
    caption = {
        "image_id": "1", "real": encoded("red"), "references": [LONG], "right": False, "score": 3.0,
        "marks": [Mark("a"), Mark("kite", True, "object"), Mark(LONG, False, "object")],
    }  # fmt: skip
    figures = [
        Figure(f"{view}.r_precision_hard_{category}_judge", 0.5, 500, 0.4, 0.6, model=LONG, scale=100.0)
        for view in ("real", "reconstruction", "painted")
        for category in ("nouns", "verbs", "colors", "numbers")
    ] + [Figure("caption.cider_d", 4.3, 500, 4.2, 4.4), not_run(LONG, LONG)]
    steps = [{"name": f"step {step}", "painted": encoded("blue"), "changed": [0, 9]} for step in range(4)]
    trained = [{"step": step, "caption": LONG, "painted": encoded("blue")} for step in range(6)]
    bars = [{"label": "painted, colour right", "share": 0.9, "low": 0.8, "high": 1.0, "n": 1000}]
    strip = io.BytesIO()
    Image.new("RGB", (308, 48), "red").save(strip, "PNG")
    inputs = ReportInputs(
        title=f"Diptych {LONG}",
        profile="toybox",
        commit=LONG,
        data="measured on 500 captions and 500 painted pictures",
        parameters={LONG: LONG},
        metrics={"evaluate": {"caption.cider_d": 4.3}, "detector": {LONG: 1.0}},
        figures=json.loads(figures_json(figures)),
        targets={"evaluate.caption.cider_d": 3.5, "evaluate.painted.second_object": "x0.7"},
        curves={"detector": [{"step": step, "loss": 1.0 / (step + 1)} for step in range(9)]},
        captions={"random": [caption] * 3, "best": [caption]},
        pictures={"random": [painted] * 3, "best": [painted], "worst": [painted]},
        painting=[{"prompt": LONG, "real": encoded("red"), "steps": steps}],
        cluster_sizes=[5, 3, 1],
        clusters={"Largest": [{"code": 1, "cells": 5, "patches": strip.getvalue()}] * 4},
        bars=[{"title": LONG, "note": LONG, "groups": [{"label": LONG, "bars": bars}] * 3}],
        failures=[
            {"kind": "caption: colour wrong", "count": 3, "of": 5000, "note": "gives an object a colour"}
        ],
        stages=[{"name": "image_generator", "minutes": 9.7, "peak_memory_gib": 1.5}],
        progress=[{"image_id": "1", "real": encoded("red"), "prompt": LONG, "steps": trained}],
        reconstructions=[{"image_id": "1", "real": encoded("red"), "steps": trained}],
    )
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_report(inputs, path)
    return path


def browse(*options: str, folder: Path) -> str:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [*command, profile, *options], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    return done.stdout


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Path, width: int, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(f"--window-size={width},3000", f"--screenshot={shot}", page.as_uri(), folder=tmp_path)
    with Image.open(shot) as taken:
        assert taken.size == (width, 3000)
        columns = taken.convert("L").resize((width, 300)).load()
        assert columns is not None
        inked = [x for x in range(width) if any(columns[x, y] < 200 for y in range(300))]
    # text from margin to margin, and white outside
    assert inked[0] > 5 and inked[-1] < width - 5 and inked[-1] - inked[0] > width / 2
    # in a frame: a window of headless Chromium is 500 pixels wide at least
    inner = html.escape(page.read_text().replace("</body>", MEASURE + "</body>"), quote=True)
    measured = tmp_path / "measured.html"
    measured.write_text(
        f'<title></title><iframe style="border:0;width:{width}px;height:3000px" srcdoc="{inner}"></iframe>'
    )
    dom = browse("--window-size=1400,3000", "--dump-dom", measured.as_uri(), folder=tmp_path)
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    found = json.loads(title[1])
    assert found == {"window": width, "page": width, "wide": []}


def test_tabs_show_one_choice_and_paper_shows_all(page: Path, tmp_path: Path) -> None:
    script = """<script>document.title = JSON.stringify([...document.querySelectorAll("#painted .panel")]
      .map(panel => getComputedStyle(panel).display));</script>"""
    shown = []
    for name, chosen in (
        ("first", ""),
        ("third", "<script>document.getElementById('painted-3').checked = true</script>"),
    ):
        copy = tmp_path / f"{name}.html"
        copy.write_text(page.read_text().replace("</body>", chosen + script + "</body>"))
        dom = browse("--window-size=1280,900", "--dump-dom", copy.as_uri(), folder=tmp_path)
        title = re.search(r"<title>(.*?)</title>", dom)
        assert title is not None
        shown.append(json.loads(title[1]))
    assert shown == [["block", "none", "none"], ["none", "none", "block"]]
    paper = tmp_path / "page.pdf"
    browse(f"--print-to-pdf={paper}", page.as_uri(), folder=tmp_path)
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000
