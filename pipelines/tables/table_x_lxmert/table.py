"""X-LXMERT's tables 1 to 4 and 6 as data: rows, columns, the paper's numbers, and what would show each of its claims. The rules were
fixed before the first number was seen."""

from __future__ import annotations

from typing import Any

from pipelines.tables.params import PretrainingTableParams
from pipelines.tables.table import Claim, Column, Comparison, PaperTable, Row, Table, Texts

# What a row's pretraining does otherwise than ours (pipelines/tables/pretrained.py). Literals, which DVC reads as parameters, so
# that each training depends on its own row alone.
CHANGES: dict[str, dict[str, Any]] = {
    "ours": {},
    "lxmert": {"discrete": False, "uniform_masking": False, "captions_only": False},
    "without_discrete": {"discrete": False},
    "without_uniform": {"uniform_masking": False},
    "without_alignment": {"captions_only": False},
    "x_uniter": {"architecture": "single_stream"},
    "uniter": {
        "architecture": "single_stream",
        "discrete": False,
        "uniform_masking": False,
        "captions_only": False,
    },
}

# Likewise: how rows paint. Of the paper's strategies LXMERT + Grid can follow those alone that need no probability.
SAMPLERS: dict[str, dict[str, Any]] = {
    "mask_predict_4": {"steps": 4},
    "mask_predict_1": {"steps": 1},
    "mask_predict_10": {"steps": 10},
    "rows": {"method": "rows"},
    "random": {"method": "random"},
    "random_200": {"method": "random", "extra_steps": 136},
    "easiest": {"method": "easiest"},
    "features": {"method": "random"},
}

# figure 5: first words, and how many word pieces a text has that begins so
STARTS = {"A": 12, "The": 12, "What": 7, "Where": 6}

TASKS = ("vqa", "gqa", "nlvr2")


def painter(title: str, row: str, sampler: str = "mask_predict_4", fine_tuned: bool = False) -> Row:
    """A row by its pretrained model, its sampler, and whether the model is fine-tuned as well."""
    tasks = {task: f"{row}_{task}" for task in TASKS} if fine_tuned else {}
    return Row(title, {"painted": f"{row}_{sampler}", **tasks})


ROWS: dict[str, Row] = {
    "ours": painter("X-LXMERT", "ours", fine_tuned=True),
    "lxmert": painter("LXMERT + Grid", "lxmert", "features", fine_tuned=True),
    "without_discrete": painter("w/o discrete visual representations", "without_discrete", "features"),
    "without_uniform": painter("w/o uniform masking", "without_uniform"),
    "without_alignment": painter("w/o updating pre-training data", "without_alignment"),
    "x_uniter": painter("X-UNITER", "x_uniter"),
    "uniter": painter("UNITER + Grid", "uniter", "features"),
    "rows": painter("X-LXMERT, TL→BR", "ours", "rows"),
    "random": painter("X-LXMERT, Random", "ours", "random"),
    "random_200": painter("X-LXMERT, Random-200", "ours", "random_200"),
    "easiest": painter("X-LXMERT, Easy-First", "ours", "easiest"),
    "mask_predict_1": painter("X-LXMERT, Mask-Predict-1", "ours", "mask_predict_1"),
    "mask_predict_10": painter("X-LXMERT, Mask-Predict-10", "ours", "mask_predict_10"),
}

CATEGORIES = ("nouns", "verbs", "colors", "numbers")
HARD = tuple(f"painted.r_precision_hard_{category}_judge" for category in CATEGORIES)
EASY, FRECHET, OBJECT = "painted.r_precision_judge", "painted.frechet_judge", "painted.main_object"
COLUMNS: dict[str, Column] = {
    FRECHET: Column("Fréchet distance (judge's space)", 1.0, higher_is_better=False, over="set", digits=4),
    EASY: Column("R-precision easy"),
    **{name: Column(f"hard, {category}") for name, category in zip(HARD, CATEGORIES, strict=True)},
    OBJECT: Column("main object, by the inspector (for HUMMUS)"),
    **{f"{task}.accuracy": Column(title) for task, title in zip(TASKS, ("VQA", "GQA", "NLVR2"), strict=True)},
}

# tables 1 to 4 and 6: IS and FID in Inception's space, R-precision by ViLBERT-MT, HUMMUS by people, VQA test-dev, GQA test-std
PAPER_COLUMNS = dict.fromkeys(
    ("IS", "FID", "easy", "hard", *(f"hard, {category}" for category in CATEGORIES)), "{:.1f}"
) | {"HUMMUS": "{:.2f}", **dict.fromkeys(("VQA", "GQA"), "{:.1f}")}
NO_TASKS = (None, None)
ONLY_IMAGES = (None,) * 9
PAPER: dict[str, tuple[float | None, ...]] = {
    "ours": (22.7, 37.4, 40.8, 25.1, 41.4, 9.8, 30.7, 18.5, 0.49, 68.6, 58.4),
    "lxmert": (1.6, 316.7, 0.5, 6.6, 5.6, 1.7, 10.2, 8.7, 0.27, 71.1, 60.1),
    "without_discrete": (1.5, 304.4, *ONLY_IMAGES),
    "without_uniform": (2.1, 227.9, *ONLY_IMAGES),
    "without_alignment": (21.6, 46.1, *ONLY_IMAGES),
    "x_uniter": (20.1, 51.4, *ONLY_IMAGES),
    "uniter": (2.4, 253.5, *ONLY_IMAGES),
    "rows": (19.8, 48.5, 26.9, 18.9, 31.6, 7.3, 21.0, 15.5, 0.43, *NO_TASKS),
    "random": (22.6, 35.9, 39.5, 24.7, 41.2, 10.1, 28.8, 18.7, 0.48, *NO_TASKS),
    "random_200": (None, None, None, 23.3, 41.2, 10.1, 26.5, 16.5, None, *NO_TASKS),
    "easiest": (None, None, None, 22.0, 35.6, 8.1, 25.3, 18.9, None, *NO_TASKS),
    "mask_predict_1": (19.5, 51.4, 36.8, 21.4, 35.2, 7.7, 29.8, 12.7, 0.47, *NO_TASKS),
    "mask_predict_10": (None, None, None, 22.6, 37.3, 10.0, 26.1, 16.9, None, *NO_TASKS),
}

POINTS = 0.025


def beaten(row: str, of: str = "ours") -> tuple[Comparison, ...]:
    """Better in R-precision easy and Fréchet distance."""
    return tuple(Comparison(column, row, "better", of=of) for column in (EASY, FRECHET))


CLAIMS: dict[str, Claim] = {
    "paints": Claim("X-LXMERT paints and LXMERT + Grid does not (table 1).", beaten("lxmert")),
    "answers": Claim(
        "X-LXMERT goes on answering and verifying: within 2.5 points of LXMERT + Grid (table 1).",
        tuple(Comparison(f"{task}.accuracy", "lxmert", "not worse", points=POINTS) for task in TASKS),
        {
            (
                f"{task}.accuracy",
                "lxmert",
            ): "codebook vectors, which it was pretrained on, lack what features have"
            for task in TASKS
        },
    ),
    "discrete": Claim(
        "Without discrete visual representations it paints worse (table 3).", beaten("without_discrete")
    ),
    "uniform_masking": Claim("Without uniform masking it paints worse (table 3).", beaten("without_uniform")),
    "data_alignment": Claim(
        "Without updating the pre-training data it paints worse (table 3).",
        beaten("without_alignment"),
        {
            (
                column,
                "without_alignment",
            ): "questions of Toybox tell nearly as much of a picture as captions do"
            for column in (EASY, FRECHET)
        },
    ),
    "general": Claim(
        "The refinements are not LXMERT's alone: X-UNITER paints and UNITER + Grid does not (table 2).",
        beaten("uniter", of="x_uniter"),
    ),
    "samplers": Claim(
        "Mask-predict-4 paints better than top left to bottom right (tables 4 and 6).",
        (
            *beaten("rows"),
            *(Comparison(column, "rows", "better", counts=False) for column in (*HARD, OBJECT)),
        ),
    ),
}

TABLE = Table(
    name="table_x_lxmert",
    section=PretrainingTableParams,
    folder="ablations/table_x_lxmert",
    title="X-LXMERT's tables in miniature",
    introduction="What made a vision-and-language BERT paint, on the data of this pipeline.",
    caveat=(
        "R-precision hard by its categories and, in the place of HUMMUS's people, the inspector's main object are shown and not "
        "counted: the judge itself takes many a noun and verb of real pictures for another, and the inspector finds nearly "
        "every main object by any sampler."
    ),
    note=(
        "LXMERT + Grid and UNITER + Grid, whose features are regressed, paint cell by cell in random order, through an image "
        "generator that was trained on features; the others by mask-predict-4 but where a row names its sampler. VQA, GQA and "
        "NLVR2: fine-tuned; a difference is between means over pictures, or over pairs of them. The Fréchet distance, a figure "
        "of all pictures together, has Student's interval over seeds, for these pictures."
    ),
    rows=ROWS,
    columns=COLUMNS,
    done={"painted": "painted"},
    claims=CLAIMS,
    paper=PaperTable(
        "The paper's tables 1 to 4 and 6",
        "Cho et al. 2020, on MSCOCO; FID in Inception's space, R-precision by ViLBERT-MT, HUMMUS by people.",
        PAPER_COLUMNS,
        PAPER,
    ),
    gallery="painted",
    counted=("painted",),
    texts=Texts(
        "Texts from their first words, as in figure 5",
        "Gibbs sampling by the pretrained model of the first seed, of pictures drawn by that seed: it has learned captions and "
        "questions alike.",
        "started/{seed}.parquet",
    ),
    weights={"pretrained": 6.0, "pretrained_single": 6.0, "features_generator": 6.0, "answered": 4.0},
)
