"""What the report shows of the image generator's training."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from diptych.eval.report import ReportInputs, write_report


def encoded(colour: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(content, "PNG")
    return content.getvalue()


def page(folder: Path, **changes: object) -> str:
    inputs = ReportInputs(
        title="Diptych", profile="toybox", commit="0123abcd", parameters={}, captions=[], pictures=[], stages=[],
        curves={}, ceilings={}, **{"metrics": {}, "targets": {}, **changes},
    )  # fmt: skip
    write_report(inputs, folder / "index.html")
    return (folder / "index.html").read_text()


def test_pictures_are_shown_at_every_step_they_were_repainted(tmp_path: Path) -> None:
    steps = [{"step": step, "painted": encoded(colour)} for step, colour in ((500, "red"), (1000, "blue"))]
    rows = [{"image_id": f"val-{number}", "real": encoded("green"), "steps": steps} for number in (1, 2)]
    text = page(tmp_path, reconstructions=rows)
    assert text.count("data:image/png") == 2 * 3
    assert text.index("step 500") < text.index("step 1,000")
    assert "real picture val-2" in text
    assert "The image generator, watched" not in page(tmp_path, reconstructions=[])


def test_its_figures_are_held_against_the_real_pictures_ones(tmp_path: Path) -> None:
    metrics = {"image_generator": {"real.main_object": 0.9, "reconstruction.main_object": 0.84, "l1": 0.02}}
    targets = {"image_generator.reconstruction.main_object": "x0.93"}
    met = page(tmp_path, metrics=metrics, targets=targets)
    assert "✓ met" in met and "93% of real" in met
    metrics["image_generator"]["reconstruction.main_object"] = 0.83
    assert "✗ missed" in page(tmp_path, metrics=metrics, targets=targets)


def test_frechet_distances_are_plain_numbers(tmp_path: Path) -> None:
    evaluate = {"reconstruction.frechet_judge": 0.0123, "painted.frechet_judge": 0.5}
    text = page(tmp_path, metrics={"evaluate": evaluate})
    assert "0.0123" in text and "50.0 %" not in text and "Fréchet distance to the real pictures" in text
