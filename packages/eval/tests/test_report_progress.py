"""What the report shows of a training on its way: the same pictures at several steps, losses of the val split."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from diptych.eval.report import ReportInputs, write_report


def encoded(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(content, "JPEG")
    return content.getvalue()


def page(folder: Path, **changes: object) -> str:
    inputs = ReportInputs(
        title="Diptych", profile="toybox", commit="0123abcd", parameters={}, metrics={}, targets={}, ceilings={},
        captions=[], pictures=[], stages=[], **{"curves": {}, **changes},
    )  # fmt: skip
    write_report(inputs, folder / "index.html")
    return (folder / "index.html").read_text()


def test_pictures_are_shown_at_every_step_they_were_painted(tmp_path: Path) -> None:
    steps = [
        {"step": step, "caption": f"caption <{step}>", "painted": encoded(color)}
        for step, color in ((700, "red"), (1400, "blue"))
    ]
    row = {"image_id": "val-1", "real": encoded("green"), "prompt": "a red kite & a boat.", "steps": steps}
    text = page(tmp_path, progress=[row])
    assert text.count("data:image/jpeg") == 3
    assert "a red kite &amp; a boat." in text and "caption &lt;700&gt;" in text and "step 1,400" in text
    assert text.index("caption &lt;700&gt;") < text.index("caption &lt;1400&gt;")
    assert "Training, watched" not in page(tmp_path, progress=[])


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
