"""The paper's table 1 as data: its rows and columns, its numbers, what would show each of its claims, and
X-LXMERT's samplers."""

from __future__ import annotations

from typing import Any

from pipelines.tables.params import TransformerTableParams
from pipelines.tables.table import Claim, Column, Comparison, PaperTable, Row, Samplers, Table

# What a row's trainings do otherwise than ours (pipelines/tables/changes.py). Literals, which DVC reads as
# parameters, so that each training depends on its own row alone.
CHANGES: dict[str, dict[str, Any]] = {
    "ours": {},
    "captions": {"tasks": "captions"},
    "paintings": {"tasks": "paintings"},
    "dense": {"image_features": "dense"},
    "discrete": {"image_features": "discrete"},
    # stage 2 alone, which goes on from ours' stage 1
    "features": {"painting_loss": "features"},
}

# Likewise, of the grid of 8 x 8 cells that a sampler paints: 200 steps are 136 more than there are cells.
SAMPLERS: dict[str, dict[str, Any]] = {
    "mask_predict_1": {"steps": 1},
    "mask_predict_4": {"steps": 4},
    "mask_predict_10": {"steps": 10},
    "rows": {"method": "rows"},
    "random": {"method": "random"},
    "random_200": {"method": "random", "extra_steps": 136},
    "easiest": {"method": "easiest"},
}


def row(title: str, captions: str, paintings: str) -> Row:
    """A row by the model that captions and the one that paints for it."""
    return Row(title, {"caption": captions, "painted": paintings})


ROWS: dict[str, Row] = {
    "ours": row("Ours", "sequence_ours", "sequence_ours"),
    "without_unified": row("w/o unified architecture", "sequence_captions", "sequence_paintings"),
    "dense": row("Dense feature", "sequence_dense", "sequence_dense"),
    "discrete": row("Discrete feature", "sequence_discrete", "sequence_discrete"),
    "without_sequence": row("w/o sequence-level training", "token_ours", "token_ours"),
    "without_clip": row("w/o CLIP-based loss", "sequence_features", "sequence_features"),
}

CATEGORIES = ("nouns", "verbs", "colors", "numbers")
COLUMNS: dict[str, Column] = {
    "caption.bleu_4": Column("B@4", over="set"),
    "caption.meteor": Column("METEOR", over="set"),
    "caption.rouge_l": Column("ROUGE-L"),
    "caption.cider_d": Column("CIDEr-D"),
    "caption.spice": Column("SPICE"),
    "painted.clip_score_judge": Column("CLIPScore"),
    "painted.frechet_judge": Column(
        "Fréchet distance (judge's space)", 1.0, higher_is_better=False, over="set", digits=4
    ),
    "painted.r_precision_hard_judge": Column(
        "R-precision hard",
        parts=tuple(f"painted.r_precision_hard_{category}_judge" for category in CATEGORIES),
    ),
    "painted.r_precision_judge": Column("R-precision easy"),
    "painted.main_object": Column("main object found"),
}

# UMT table 1: parameters in millions; R-precision by ViLBERT is left out, which we have not
PAPER_COLUMNS = {
    "Parameters": "{:.0f}M",
    **dict.fromkeys(("B@4", "M", "R", "C", "S", "CLIPScore", "FID", "CLIP hard", "CLIP easy"), "{:.1f}"),
}
PAPER: dict[str, tuple[float, ...]] = {
    "ours": (228, 37.3, 28.2, 57.9, 122.6, 21.9, 77.2, 29.9, 40.7, 69.9),
    "without_unified": (456, 37.4, 28.2, 58.0, 122.3, 22.0, 76.5, 30.2, 40.3, 68.9),
    "dense": (228, 37.2, 28.2, 57.9, 122.2, 22.0, 75.7, 34.9, 38.6, 61.9),
    "discrete": (228, 34.7, 27.0, 56.0, 114.3, 20.7, 76.9, 30.2, 40.7, 69.3),
    "without_sequence": (228, 32.2, 26.9, 54.8, 107.9, 20.2, 73.4, 33.5, 35.5, 63.0),
    "without_clip": (228, 37.6, 28.3, 58.1, 122.5, 22.0, 72.5, 40.1, 34.2, 59.0),
}

# X-LXMERT's samplers as its tables 4 and 6 call them
SAMPLER_TITLES = {
    "mask_predict_1": "mask-predict-1",
    "mask_predict_4": "mask-predict-4",
    "mask_predict_10": "mask-predict-10",
    "rows": "top left to bottom right",
    "random": "random",
    "random_200": "random-200",
    "easiest": "easiest first",
}
SAMPLER_COLUMNS: dict[str, Column] = {
    **{name: column for name, column in COLUMNS.items() if name.startswith("painted.")},
    **{f"painted.r_precision_hard_{category}_judge": Column(f"hard, {category}") for category in CATEGORIES},
    "painted.seconds": Column("seconds", 1.0, higher_is_better=False, over="set", digits=4),
}

CIDER_D, CLIP_SCORE, EASY = "caption.cider_d", "painted.clip_score_judge", "painted.r_precision_judge"
# shown and not counted: the judge itself takes many a noun and verb of real pictures for another
HARD = "painted.r_precision_hard_judge"
# a share: trainings of some minutes differ by more than the 0.2% of CIDEr-D between the paper's models
SAME = 0.02

CLAIMS: dict[str, Claim] = {
    "unified": Claim(
        "One unified model is as good as two models of one task each.",
        (
            Comparison(CIDER_D, "without_unified", "not worse", SAME),
            Comparison(CLIP_SCORE, "without_unified", "not worse", SAME),
            Comparison(EASY, "without_unified", "not worse", SAME),
            Comparison(HARD, "without_unified", "not worse", SAME, counts=False),
        ),
        {
            (CIDER_D, "without_unified"): "two tasks share one small transformer, and captioning loses by it",
            (CLIP_SCORE, "without_unified"): "two tasks share one small transformer, and painting loses by it",
            (EASY, "without_unified"): "two tasks share one small transformer, and painting loses by it",
        },
    ),
    "two_level": Claim(
        "With two-level features it paints better than with dense ones, and captions better than with discrete ones.",
        (
            Comparison(CLIP_SCORE, "dense", "better"),
            Comparison(EASY, "dense", "better"),
            Comparison(HARD, "dense", "better", counts=False),
            Comparison(CIDER_D, "discrete", "better"),
        ),
        {
            (CLIP_SCORE, "dense"): (
                "features of a cell are near enough to its codebook vector that painting does not notice the difference "
                "between training and use"
            ),
            (EASY, "dense"): (
                "features of a cell are near enough to its codebook vector that painting does not notice the difference "
                "between training and use"
            ),
            (CIDER_D, "discrete"): "the codebook loses nothing here that captions tell",
        },
    ),
    "sequence_level": Claim(
        "Sequence-level training improves captions and paintings.",
        (
            Comparison(CIDER_D, "without_sequence", "better"),
            Comparison(CLIP_SCORE, "without_sequence", "better"),
        ),
        {
            (CIDER_D, "without_sequence"): "stage 2 is too short, or stage 1 has left no CIDEr-D to gain",
            (CLIP_SCORE, "without_sequence"): (
                "stage 2 is too short, or what the scorer rewards is not what the judge sees"
            ),
        },
    ),
    "clip_loss": Claim(
        "The CLIP-based loss paints better than a squared error of features.",
        (
            Comparison(CLIP_SCORE, "without_clip", "better"),
            Comparison(EASY, "without_clip", "better"),
            Comparison(HARD, "without_clip", "better", counts=False),
        ),
        {
            (CLIP_SCORE, "without_clip"): "what the scorer rewards is not what the judge sees",
            (EASY, "without_clip"): "the scorer's reward is for the whole sentence, and not for what tells two apart",
        },
    ),
}  # fmt: skip

TABLE = Table(
    name="table1",
    section=TransformerTableParams,
    folder="ablations",
    title="Table 1 in miniature",
    introduction="The ablations of Unifying Multimodal Transformer on the data of this pipeline.",
    caveat=(
        "R-precision hard is not counted: the judge itself takes many a noun and verb of real pictures for "
        "another."
    ),
    note=(
        "B@4, METEOR and the Fréchet distance, figures of all pictures together, have Student's interval over "
        "seeds, for these pictures. docs/ablations.md says what few seeds can show."
    ),
    rows=ROWS,
    columns=COLUMNS,
    done={"caption": "captioned", "painted": "painted"},
    claims=CLAIMS,
    paper=PaperTable(
        "The paper's table 1",
        "Huang et al. 2021, on MSCOCO; FID in Inception's space, R-precision by CLIP.",
        PAPER_COLUMNS,
        PAPER,
    ),
    samplers=Samplers(
        "Samplers, as in X-LXMERT's tables 4 and 6",
        "models/sequence on the test split, with the guidance of the table; below a figure its 95% interval "
        "over pictures. Seconds: the codes of one painting in a batch.",
        SAMPLER_TITLES,
        SAMPLER_COLUMNS,
        "metrics/samplers.json",
    ),
    gallery="painted",
    weights={"token": 6.0, "sequence": 3.0, "features": 3.0},
    timed=("sampler",),
)
