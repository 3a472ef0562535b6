"""What the page says, and that it needs nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.eval.errors import UserError
from diptych.eval.figures import Figure, figures_json, not_run
from diptych.eval.report.labels import bounds, label, shown
from diptych.eval.report.marks import Mark
from diptych.eval.report.page import ReportInputs, write_report
from diptych.eval.report.pictures import LARGEST, data_uri
from diptych.eval.report.sheet import contact_sheet

EVIL = "<script>alert('x')</script> & \"quoted\""


def encoded(color: str, kind: str = "PNG", size: int = 64) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size, size), color).save(content, kind)
    return content.getvalue()


def picture(prompt: str, right: bool | None) -> dict[str, Any]:
    views = {"real": encoded("red", "JPEG"), "reconstruction": encoded("orange"), "painted": encoded("blue")}
    return {"image_id": "test-1", "prompt": prompt, "right": right, "score": 2.04, **views}


def records() -> list[dict[str, Any]]:
    """What `evaluate` writes, read back."""
    found = [
        Figure(
            "caption.cider_d",
            3.612,
            500,
            3.5,
            3.75,
            seed=0,
            scale=100.0,
            model=EVIL,
            reference_sha256="ab" * 32,
        ),
        Figure("caption.bleu_4", 0.41, 500, 0.4, 0.42, scale=100.0),
        not_run("caption.spice", "SPICE is turned off; set evaluate.corenlp", 500),
        not_run("painted.fid", "needs Inception", 500),
        not_run("reconstruction.fid", "needs Inception", 500),
    ]
    for view, easy, hard in (("real", 0.9, 0.8), ("reconstruction", 0.85, 0.7), ("painted", 0.7, 0.6)):
        found.append(Figure(f"{view}.r_precision_judge", easy, 500, easy - 0.02, easy + 0.02, scale=100.0))
        found.append(
            Figure(f"{view}.r_precision_hard_colors_judge", hard, 117, hard - 0.1, hard + 0.1, scale=100.0)
        )
        found.append(Figure(f"{view}.main_object", hard, 500, hard - 0.1, hard + 0.1))
    return json.loads(figures_json(found))


@pytest.fixture
def inputs() -> ReportInputs:
    caption = {
        "image_id": "test-1",
        "real": encoded("red"),
        "references": ["a red kite .", EVIL],
        "right": True,
        "score": None,
    }
    marks = [Mark("a"), Mark("red", True, "color"), Mark(EVIL, False, "object")]
    step = {"name": EVIL, "painted": encoded("red"), "changed": [0, 63]}
    return ReportInputs(
        title=f"Diptych {EVIL}",
        profile="toybox",
        commit="0123abcd",
        data="500 pictures",
        parameters={"cluster": {"k": 512}, EVIL: EVIL},
        metrics={
            "detector": {"map50": 0.97},
            "image_generator": {"reconstruction": {"main_object": 0.95}},
            "evaluate": {
                "caption": {"cider_d": 3.612, "bleu_4": 0.41},
                "real.main_object": 0.98,
                "real": {"r_precision_judge": 0.9, "clip_score_judge": 1.5},
                "painted": {"r_precision_judge": 0.7, "main_object": 0.6, "clip_score_judge": 1.2},
                EVIL: EVIL,
            },
        },
        figures=records(),
        targets={
            "detector.map50": 0.95,
            "evaluate.caption.cider_d": 3.5,
            "evaluate.painted.r_precision_judge": "x0.7",
            "evaluate.painted.main_object": 0.75,
            "image_generator.reconstruction.main_object": 0.9,
            "evaluate.caption.main_fact": 0.9,
        },
        ceilings={"evaluate.caption.cider_d": 4.3},
        curves={
            EVIL: [{"step": s, "loss": 3.0 / (s + 1), EVIL: s, "learning_rate": 0.1} for s in range(5)],
            "scorer": [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}],
        },
        captions={
            "random": [{**caption, "marks": marks}],
            "worst": [{**caption, "marks": [Mark("a"), Mark("boat", True, "object")], "score": 3.25}],
        },
        pictures={"random": [picture(EVIL, True)], "worst": [picture("a blue boat .", False)]},
        choices={"captions": {"random": EVIL}, "pictures": {"worst": "those with the lowest score"}},
        painting=[{"prompt": EVIL, "real": encoded("red"), "steps": [step]}],
        clusters={EVIL: [{"code": 7, "cells": 1234, "patches": encoded("red")}]},
        bars=[
            {
                "title": EVIL,
                "note": EVIL,
                "groups": [
                    {
                        "label": EVIL,
                        "bars": [{"label": EVIL, "share": 0.5, "low": None, "high": None, "n": 9}],
                    }
                ],
            }
        ],
        failures=[{"kind": EVIL, "count": 3, "of": 5100, "note": EVIL}],
        stages=[
            {"name": "dataset", "minutes": 0.5, "peak_memory_gib": 0.4},
            {"name": "train_token", "minutes": 6.25, "peak_memory_gib": None},
        ],
        further=[{"title": EVIL, "path": "../other/index.html", "command": "make other"}],
    )


class Audit(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        self.links += [
            value or ""
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "action", "srcset")
        ]


def written(inputs: ReportInputs, folder: Path) -> str:
    write_report(inputs, folder / "report" / "index.html")
    assert [path.name for path in (folder / "report").iterdir()] == ["index.html"]
    return (folder / "report" / "index.html").read_text()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page[page.index("<body") :]))


def test_the_page_is_self_contained_and_escaped(inputs: ReportInputs, tmp_path: Path) -> None:
    page = written(inputs, tmp_path)
    assert "<script" not in page and page.count("&lt;script&gt;") >= 20
    assert not re.search(r"https?://|url\((?!#)|@import", page)
    audit = Audit()
    audit.feed(page)
    assert not audit.tags & {"script", "link", "iframe", "object", "form"} and not audit.handlers
    audit.links.remove("../other/index.html")  # to follow, not to fetch
    assert audit.links and all(link.startswith(("data:image/", "#")) for link in audit.links)
    assert sum(link.startswith("data:image/jpeg") for link in audit.links) == 2
    assert sum(link.startswith("data:image/png") for link in audit.links) == 2 * 2 + 2 + 2 + 1
    assert page.count("<svg") == 3 + 1  # curves, and the frames of changed cells
    anchors = {link[1:] for link in audit.links if link.startswith("#")}
    assert {
        name for name in anchors if f'id="{name}"' not in page and not name.startswith(("m", "p"))
    } == set()


def test_the_page_says_what_was_measured(inputs: ReportInputs, tmp_path: Path) -> None:
    text = text_of(written(inputs, tmp_path))
    assert "Detector mAP at IoU 0.5 97.0 % 95.0 % ✓ met" in text
    assert "Caption CIDEr-D 3.61 3.50 to 3.75 3.50 4.30 ✓ met" in text
    assert "Painted pictures · R-precision by the judge 70.0 % 68.0 to 72.0 70% of real 90.0 % ✓ met" in text
    assert (
        "Painted pictures · main object: class and colour right 60.0 % 50.0 to 70.0 75.0 % 98.0 % ✗ missed"
        in text
    )
    assert (
        "Reconstructions · main object: class and colour right, measured by image_generator 95.0 % 90.0 % ✓ met"
        in text
    )
    assert "Captions that name the main object with its colour – 90.0 %" in text
    assert "R-precision by the judge 90.0 % 88.0 to 92.0 85.0 % 83.0 to 87.0 70.0 % 68.0 to 72.0 500" in text
    assert "Caption SPICE SPICE is turned off; set evaluate.corenlp" in text
    assert "FID (painted, reconstruction) needs Inception" in text
    assert "colours real 80 % of 117 reconstruction 70 % of 117 painted 60 % of 117" in text
    assert (
        "train_token 6.2" in text and "6.8 minutes" in text and "0123abcd" in text and "cluster.k 512" in text
    )
    assert "those with the lowest score" in text and "code 7 · 1,234 cells" in text


def test_pictures_come_first(inputs: ReportInputs, tmp_path: Path) -> None:
    """Then captions, the headline, the papers' tables."""
    page = written(inputs, tmp_path)
    order = ["painted", "captions", "glance", "papers", "figures", "steps", "bars", "training"]
    places = [page.index(f'<section id="{name}">') for name in order if f'<section id="{name}">' in page]
    assert places == sorted(places) and len(places) >= 6
    linked = [name for name in re.findall(r'<a href="#(\w+)">', page.partition("<nav>")[2].partition("</nav>")[0])]
    assert linked[:2] == ["painted", "captions"] and linked.index("glance") < linked.index("papers")


def test_this_run_stands_beside_the_papers_as_other_data(inputs: ReportInputs, tmp_path: Path) -> None:
    text = text_of(written(inputs, tmp_path))
    assert "Other data: do not compare the rows." in text
    assert "this run · captions 41.0 361.2 – Huang et al. 2021 (UMT), table 1 · other data" in text
    assert "UMT 37.3 28.2 57.9 122.6 21.9" in text  # table 1
    assert "this run · painted, by the judge – 70.0" in text
    assert text.count("No SPICE of this run: SPICE is turned off; set evaluate.corenlp") == 1
    assert text.count("No FID of this run: needs Inception") == 2, "of painted and of blurred pictures"
    assert "UMT 77.2 29.9 – 40.7 69.9 37.7 59.2" in text
    assert "Beside the papers" not in text_of(written(dataclasses.replace(inputs, figures=[]), tmp_path))


def test_the_papers_tables_are_whole() -> None:
    content = json.loads(files("diptych.eval.report").joinpath("papers.json").read_text())
    assert [table["name"] for table in content["tables"]] == ["captions", "painted", "categories", "blurred"]
    for table in content["tables"]:
        for source in table["sources"]:
            assert re.search(r"\(.+\), table \d$", source["source"]) and source["data"] and source["rows"]
            for row in source["rows"]:
                assert list(row["values"]) == table["columns"]
                assert any(value is not None for value in row["values"].values())
    # X-LXMERT's mean of R-precision-hard is that of its categories, in its tables 1 and 6 alike
    categories = content["tables"][2]["sources"][0]["rows"]
    for row in categories:
        mean, *parts = row["values"].values()
        assert mean == pytest.approx(sum(parts) / len(parts), abs=0.11)
    painted = {row["model"]: row["values"] for row in content["tables"][1]["sources"][2]["rows"]}
    for row in categories:
        if row["model"] in painted:
            assert painted[row["model"]]["r_hard_vilbert"] == row["values"]["mean"]


def test_words_are_marked(inputs: ReportInputs, tmp_path: Path) -> None:
    page = written(inputs, tmp_path)
    assert page.count('<b class="said">red</b>') == 1 and page.count('<b class="said">boat</b>') == 1
    assert page.count('<s class="said">&lt;script&gt;') == 1
    # the picture with a wrong word is not among those that the filter hides
    assert page.count("card caption-card is-right") == 1 and page.count('class="card is-right"') == 1


def test_questions_are_shown_with_right_and_wrong_answers(inputs: ReportInputs, tmp_path: Path) -> None:
    said = {"answers": ["red", "blue"], "probabilities": [0.8, 0.15], "references": "red (9), <b>", "kind": "color"}
    rows = [
        {"image_id": str(score), "real": encoded("red"), "question": "what color?", "score": score, **said}
        for score in (1.0, 0.3)
    ]
    values = {"answer.accuracy": 0.91, "answer.accuracy_color": 0.8}
    values |= {"words_alone.accuracy": 0.31, "words_alone.accuracy_color": 0.2}
    figures = json.loads(figures_json([Figure(name, value, 20) for name, value in values.items()]))
    page = written(replace(inputs, answers={"random": rows}, figures=[*inputs.figures, *figures]), tmp_path)
    text = text_of(page)
    assert "what color? red ✓" in text and "what color? red ✗" in text
    assert "red · 80 %" in text and "people: red (9), &lt;b&gt;" in page
    assert "all questions 91.0 % 31.0 % 20" in text and "colour 80.0 % 20.0 % 20" in text


def test_galleries_are_plain_lists_without_style_and_tabs_with_it(
    inputs: ReportInputs, tmp_path: Path
) -> None:
    page = written(inputs, tmp_path)
    assert page.count('type="radio"') == 4 and page.count(" checked>") == 2
    assert page.count('<div class="panel">') == 4 and " hidden" not in page
    for name in ("painted", "captions"):
        assert all(f'id="{name}-{place}"' in page and f'for="{name}-{place}"' in page for place in (1, 2))


def test_the_same_inputs_give_the_same_page(inputs: ReportInputs, tmp_path: Path) -> None:
    write_report(inputs, tmp_path / "a.html")
    write_report(inputs, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_empty_sections_are_left_out_and_bad_targets_named(inputs: ReportInputs, tmp_path: Path) -> None:
    page = written(ReportInputs(title="Diptych", profile="toybox", commit="0123abcd"), tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["What ran"] and "<a href" in page
    with pytest.raises(UserError, match="'detector.map50' is 'much'"):
        write_report(dataclasses.replace(inputs, targets={"detector.map50": "much"}), tmp_path / "other.html")
    with pytest.raises(UserError, match="'map50' is no name of a figure"):
        write_report(dataclasses.replace(inputs, targets={"map50": 0.9}), tmp_path / "other.html")
    for small in ("evaluate.painted.fid", "evaluate.painted.frechet_judge", "image_generator.l1", "train_token.code_loss"):
        with pytest.raises(UserError, match=f"'{small}' is to be small"):
            write_report(dataclasses.replace(inputs, targets={small: 0.9}), tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_answers_alone_have_their_section(tmp_path: Path) -> None:
    figures = json.loads(figures_json([Figure("answer.accuracy", 0.9, 100, 0.85, 0.95)]))
    page = written(ReportInputs(title="", profile="", commit="", figures=figures), tmp_path)
    assert "<h3>Answers</h3>" in page and '<a href="#figures">' in page


def test_figures_are_held_against_the_real_pictures_ones(tmp_path: Path) -> None:
    metrics = {"image_generator": {"real.main_object": 0.9, "reconstruction.main_object": 0.84, "l1": 0.02}}
    targets: dict[str, float | str] = {"image_generator.reconstruction.main_object": "x0.93"}
    inputs = ReportInputs(title="", profile="", commit="", metrics=metrics, targets=targets)
    met = written(inputs, tmp_path)
    assert "✓ met" in met and "93% of real" in met
    metrics["image_generator"]["reconstruction.main_object"] = 0.83
    assert "✗ missed" in written(inputs, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("painted.frechet_judge", 0.0123, "0.0123"),
        ("painted.main_object", 0.992, "99.2 %"),
        ("painted.clip_score_judge", 2.04, "204.0"),
        ("caption.cider_d", 0.5, "0.5"),
        ("caption.vocabulary", 68.0, "68"),
        ("cluster.k", 512, "512"),
        ("painted.fid", None, "–"),
        ("painted.counts_right", 0.25, "25.0 %"),
        ("painted.counts_said", 0.25, "25.0 %"),
        ("some_count", 0.25, "0.25"),
        ("answer.accuracy_count", 0.957, "95.7 %"),
        ("answer.accuracy_color", 0.957, "95.7 %"),
    ],
)
def test_numbers_read_as_expected(name: str, value: float | None, text: str) -> None:
    assert shown(name, value) == text


def test_names_and_intervals_read_as_expected() -> None:
    assert (
        label("painted.r_precision_hard_colors_judge")
        == "Painted pictures · R-precision-hard, colours, by the judge"
    )
    assert label("real.inception_score") == "Real pictures · Inception Score"
    assert (
        label("painted.frechet_judge_blur_4")
        == "Painted pictures · Fréchet distance, blurred by 4 px, by the judge"
    )
    assert label("caption.unique") == "Different captions, share"
    assert label("something.else") == "something.else"
    assert bounds("main_object", 0.5, 1.0) == "50.0 to 100.0" and bounds("main_object", None, None) == ""


def test_large_pictures_are_made_small() -> None:
    small = encoded("red")
    assert data_uri(small).startswith("data:image/png;base64,")
    noise = Image.effect_noise((1000, 500), 90)
    content = io.BytesIO()
    noise.save(content, "PNG")
    uri = data_uri(content.getvalue())
    assert uri.startswith("data:image/webp;base64,") and len(uri) < len(content.getvalue()) / 5
    import base64

    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (LARGEST, LARGEST // 2)


def test_contact_sheet() -> None:
    sheet = contact_sheet([picture("a red kite flies " * 20, None)] * 5, columns=2, tile=64)
    assert sheet.width % 2 == 0 and sheet.height % 3 == 0
    # real (red), reconstruction (orange) and painted (blue) side by side in the first cell
    colors = [sheet.getpixel((10 + 64 * place + 32, 42)) for place in range(3)]
    assert colors[0][0] > 240 and colors[0][2] < 20
    assert colors[1] == (255, 165, 0) and colors[2] == (0, 0, 255)
    with pytest.raises(UserError):
        contact_sheet([], columns=2)
