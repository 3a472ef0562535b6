from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from diptych.eval.errors import UserError
from diptych.eval.report import ReportInputs, contact_sheet, write_report

EVIL = "<script>alert('x')</script> & \"quoted\""


def encoded(color: str, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(content, kind)
    return content.getvalue()


def picture(prompt: str, right: bool | None) -> dict:
    views = {"real": encoded("red", "JPEG"), "reconstruction": encoded("orange"), "painted": encoded("blue")}
    return {"prompt": prompt, "main_right": right, **views}


@pytest.fixture
def inputs() -> ReportInputs:
    caption = {
        "image_id": "test-1",
        "real_png": encoded("red"),
        "references": ["a red kite .", EVIL],
        "main_right": True,
    }
    return ReportInputs(
        title=f"Diptych {EVIL}",
        profile="toybox",
        commit="0123abcd",
        parameters={"cluster": {"k": 512}, EVIL: EVIL},
        metrics={
            "detector": {"map50": 0.97},
            "evaluate": {
                "caption": {"cider_d": 3.612, "bleu_4": 0.41},
                "real.main_object": 0.98,
                "real": {"r_precision_judge": 0.9, "clip_score_judge": 1.5},
                "painted": {"r_precision_judge": 0.7, "main_object": 0.6, "clip_score_judge": 1.2},
                EVIL: EVIL,
            },
        },
        targets={
            "detector.map50": 0.95,
            "evaluate.caption.cider_d": 3.5,
            "evaluate.painted.r_precision_judge": "x0.7",
            "evaluate.painted.main_object": 0.75,
            "evaluate.caption.main_fact": 0.9,
        },
        ceilings={"evaluate.caption.cider_d": 4.3},
        curves={
            EVIL: [{"step": s, "loss": 3.0 / (s + 1), EVIL: s, "learning_rate": 0.1} for s in range(5)],
            "scorer": [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}],
        },
        captions=[{**caption, "caption": EVIL}, {**caption, "caption": "a boat .", "main_right": None}],
        pictures=[picture(EVIL, True), picture("a blue boat .", False)],
        stages=[
            {"name": "dataset", "minutes": 0.5, "peak_memory_gib": 0.4},
            {"name": "train_token", "minutes": 6.25, "peak_memory_gib": None},
        ],
    )


class Audit(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "action")
        ]


def test_the_page_is_self_contained_and_escaped(inputs: ReportInputs, tmp_path: Path) -> None:
    write_report(inputs, tmp_path / "report" / "index.html")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 8
    assert not re.search(r"https?://|url\((?!#)|@import", page)
    audit = Audit()
    audit.feed(page)
    assert not audit.tags & {"script", "link", "iframe", "object"}
    assert audit.links and all(link.startswith(("data:image/", "#")) for link in audit.links)
    assert sum(link.startswith("data:image/jpeg") for link in audit.links) == 2
    assert sum(link.startswith("data:image/png") for link in audit.links) == 2 + 4
    assert page.count("<svg") == 3


def test_the_page_says_what_was_measured(inputs: ReportInputs, tmp_path: Path) -> None:
    write_report(inputs, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page[page.index("<body") :]))
    assert "Detector mAP at IoU 0.5 97.0 % 95.0 % ✓ met" in text
    assert "Caption CIDEr-D 3.61 3.50 4.30 ✓ met" in text
    assert "Painted pictures · R-precision by the judge 70.0 % 70% of real 90.0 % ✓ met" in text
    assert "Painted pictures · main object: class and colour right 60.0 % 75.0 % 98.0 % ✗ missed" in text
    assert "Captions that name the main object with its colour – 90.0 %" in text
    assert "CLIPScore by the judge 150.0 – 120.0" in text
    assert "Main object right in 1 of 2." in text and "named in 1 of 1." in text
    assert (
        "train_token 6.2" in text and "6.8 minutes" in text and "0123abcd" in text and "cluster.k 512" in text
    )


def test_the_same_inputs_give_the_same_page(inputs: ReportInputs, tmp_path: Path) -> None:
    write_report(inputs, tmp_path / "a.html")
    write_report(inputs, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_empty_sections_are_left_out_and_bad_targets_named(inputs: ReportInputs, tmp_path: Path) -> None:
    empty = dataclasses.replace(
        inputs, metrics={}, targets={}, curves={}, captions=[], pictures=[], stages=[], parameters={}
    )
    write_report(empty, tmp_path / "index.html")
    assert "At a glance" not in (tmp_path / "index.html").read_text()
    with pytest.raises(UserError, match="'detector.map50' is 'much'"):
        write_report(dataclasses.replace(inputs, targets={"detector.map50": "much"}), tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_contact_sheet() -> None:
    sheet = contact_sheet([picture("a red kite flies " * 20, None)] * 5, columns=2, tile=64)
    assert sheet.width % 2 == 0 and sheet.height % 3 == 0
    # real (red), reconstruction (orange) and painted (blue) side by side in the first cell
    colors = [sheet.getpixel((10 + 64 * place + 32, 42)) for place in range(3)]
    assert colors[0][0] > 240 and colors[0][2] < 20
    assert colors[1] == (255, 165, 0) and colors[2] == (0, 0, 255)
    with pytest.raises(UserError):
        contact_sheet([], columns=2)
