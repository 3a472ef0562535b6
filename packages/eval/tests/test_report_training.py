"""What the report shows of training: pictures at several steps, curves, the codebook."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from diptych.eval.report.page import ReportInputs, write_report
from diptych.eval.report.pictures import cell_patches


def encoded(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(content, "PNG")
    return content.getvalue()


def page(folder: Path, **changes: object) -> str:
    inputs = ReportInputs(title="Diptych", profile="toybox", commit="0123abcd", **changes)  # type: ignore[arg-type]
    write_report(inputs, folder / "index.html")
    return (folder / "index.html").read_text()


def test_pictures_are_shown_at_every_step_they_were_painted(tmp_path: Path) -> None:
    steps = [
        {"step": step, "caption": f"caption <{step}>", "painted": encoded(color)}
        for step, color in ((700, "red"), (1400, "blue"))
    ]
    row = {"image_id": "val-1", "real": encoded("green"), "prompt": "a red kite & a boat.", "steps": steps}
    text = page(tmp_path, progress=[row])
    assert text.count("data:image/png") == 3
    assert "a red kite &amp; a boat." in text and "caption &lt;700&gt;" in text and "step 1,400" in text
    assert text.index("caption &lt;700&gt;") < text.index("caption &lt;1400&gt;")
    assert "Training, watched" not in page(tmp_path, progress=[])


def test_pictures_are_shown_at_every_step_they_were_repainted(tmp_path: Path) -> None:
    steps = [{"step": step, "painted": encoded(color)} for step, color in ((500, "red"), (1000, "blue"))]
    rows = [{"image_id": f"val-{number}", "real": encoded("green"), "steps": steps} for number in (1, 2)]
    text = page(tmp_path, reconstructions=rows)
    assert text.count("data:image/png") == 2 * 3
    assert text.index("step 500") < text.index("step 1,000")
    assert "real picture val-2" in text
    assert "Reconstruction, watched" in text and "Reconstruction, watched" not in page(tmp_path, reconstructions=[])


def test_val_losses_are_drawn_over_those_of_training(tmp_path: Path) -> None:
    train = [{"step": step, "paint_loss": 3.0 / step, "learning_rate": 1.0} for step in (20, 40, 60)]
    val = [{"step": step, "val_paint_loss": 4.0 / step} for step in (30, 60)]
    alone = page(tmp_path, curves={"train_token": train})
    both = page(tmp_path, curves={"train_token": train + val})
    assert alone.count("<svg") == both.count("<svg") == 1
    labels = [re.findall(r"<text[^>]*>(train|val)</text>", text) for text in (alone, both)]
    assert labels == [[], ["train", "val"]]
    # a figure that only an evaluation has is a curve of its own
    other = [{"step": step, "val_accuracy": 0.5} for step in (20, 40)]
    assert page(tmp_path, curves={"train_token": train + other}).count("<svg") == 2


def test_the_codebook_is_drawn_and_shown_by_its_cells(tmp_path: Path) -> None:
    rows = [{"code": 7, "cells": 1234, "patches": encoded("red")}]
    text = page(tmp_path, cluster_sizes=[5, 0, 1234], clusters={"Largest": rows, "Smallest": []})
    assert text.count("<svg") == 1 and "code 7 · 1,234 cells" in text and "Smallest" not in text
    assert ">1,000</text>" in text and "$" not in text  # numbers, no formulas
    assert "Codebook" not in page(tmp_path, cluster_sizes=[0, 0])


def test_a_patch_is_its_cell_amid_its_neighbours() -> None:
    picture = Image.new("RGB", (64, 64), "blue")
    picture.paste("yellow", (56, 0, 64, 8))  # cell 7, the top right one
    content = io.BytesIO()
    picture.save(content, "PNG")
    strip = Image.open(io.BytesIO(cell_patches([(content.getvalue(), 7), (content.getvalue(), 35)])))
    assert strip.size == (2 * 48 + 4, 48)

    def near(place: tuple[int, int], color: tuple[int, int, int]) -> bool:
        found = strip.convert("RGB").getpixel(place)
        return all(abs(one - other) < 40 for one, other in zip(found, color, strict=True))

    assert near((24, 24), (255, 255, 0))  # the cell
    assert near((5, 24), (0, 0, 255)) and near((24, 5), (227, 229, 234))  # beside it, and outside the picture
    assert near((52 + 24, 24), (0, 0, 255))
