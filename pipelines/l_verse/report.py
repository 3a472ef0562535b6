"""L-Verse's page, the same as that of the main pipeline: figures, curves, captions and pictures; and contact sheets."""

from __future__ import annotations

import json
from pathlib import Path

from diptych.eval.report.page import ReportInputs, write_report
from diptych.eval.report.sheet import contact_sheet
from diptych.features.store import FeatureReader
from pipelines.l_verse.evaluate import VERDICTS
from pipelines.l_verse.params import FIGURES, GENERATED, MADE_BY, TOKENS, Params
from pipelines.reporting.failures import failures, lost_pictures, shares_by_class
from pipelines.reporting.histories import read_history
from pipelines.reporting.pictures import repainted_samples, repainted_sheet
from pipelines.reporting.test_set import read_test_set
from pipelines.runner.params import read_params
from pipelines.runner.stage import Stage, commit, run

OUT = "ablations/l_verse"
PLOTS, COSTS = Path("plots/l_verse"), Path("metrics/stages/l_verse")
CURVES = ("autoencoder_ml", "autoencoder_ml_val", "autoencoder_sl", "autoencoder_sl_val", "biart")
MEASURED = ("autoencoder_ml", "autoencoder_sl", "tokens", "biart", "generate", "evaluate", "package")
EVALUATIONS = 6


def main(stage: Stage, params: Params) -> None:
    """Write ablations/l_verse: index.html, and contact sheets of what was painted and what was repainted."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    test = read_test_set(
        params.captions, params.pictures, stage.seed, GENERATED / "test.parquet", Path(VERDICTS)
    )
    raw = read_params()
    lost, pictures = lost_pictures(TOKENS), len(FeatureReader(TOKENS, MADE_BY))
    repainted = repainted_samples(PLOTS / "autoencoder_sl_samples.parquet", EVALUATIONS)
    inputs = ReportInputs(
        title=params.package.title,
        profile=raw["report"]["profile"],
        commit=commit(),
        data=test.data,
        parameters={name: raw[name] for name in ("seed", "l_verse")},
        metrics={"evaluate": json.loads(Path("metrics/l_verse.json").read_text(encoding="utf-8"))},
        figures=figures,
        curves={name: read_history(PLOTS / f"{name}.csv") for name in CURVES},
        captions=test.captions,
        pictures=test.pictures,
        choices=test.choices,
        bars=shares_by_class(test.painted, test.captioned),
        failures=failures(test.painted, test.captioned, figures, lost, pictures + len(lost)),
        reconstructions=repainted,
        stages=[
            {"name": name, **json.loads((COSTS / f"{name}.json").read_text(encoding="utf-8"))}
            for name in MEASURED
        ],
    )
    with stage.write(OUT) as folder:
        folder.mkdir(parents=True)
        write_report(inputs, folder / "index.html")
        contact_sheet(test.pictures["random"], columns=4).save(folder / "contact_sheet.png")
        if repainted:
            repainted_sheet(repainted).save(folder / "reconstructions.png")


if __name__ == "__main__":
    run("l_verse/report", Params, main)
