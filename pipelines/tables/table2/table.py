"""UMT's table 2 as data: systems, columns, what each costs, the paper's numbers, and what would show each claim. The rules were fixed
before the first number was seen."""

from __future__ import annotations

from typing import Any

from pipelines.tables.systems import SystemsTableParams
from pipelines.tables.table import Claim, Column, Comparison, PaperTable, Row, Table

# How each system is started and what is asked of it (pipelines/tables/compared.py). Literals, which DVC reads as parameters.
SYSTEMS: dict[str, dict[str, Any]] = {
    "ours": {"family": "unified"},
    # as its paper paints: mask-predict-4 without guidance, which its pretraining has not taught it
    "x_lxmert": {"family": "pretrained", "steps": 4},
    "ft_captions": {"family": "unified", "does": "captions"},
    "ft_paintings": {"family": "unified", "does": "paintings"},
    "l_verse": {"family": "l_verse"},
    "butd_grid": {"family": "butd", "does": "captions"},
    "butd_regions": {"family": "butd", "does": "captions", "features": "regions"},
    "dm_gan": {"family": "dm_gan", "does": "paintings"},
}

ROWS: dict[str, Row] = {
    "ours": Row("Ours", {"caption": "ours", "painted": "ours", "vqa": "ours_vqa"}),
    "x_lxmert_ft": Row("X-LXMERT-FT", {"caption": "ft_captions", "painted": "ft_paintings"}),
    "x_lxmert": Row("X-LXMERT", {"caption": "x_lxmert", "painted": "x_lxmert", "vqa": "x_lxmert_vqa"}),
    "l_verse": Row("L-Verse", {"caption": "l_verse", "painted": "l_verse"}),
    "butd": Row("BUTD, regions", {"caption": "butd_regions"}),
    "butd_grid": Row("BUTD, grid", {"caption": "butd_grid"}),
    "dm_gan": Row("DM-GAN", {"painted": "dm_gan"}),
}

CATEGORIES = ("nouns", "verbs", "colors", "numbers")
CIDER_D, CLIP_SCORE, EASY = "caption.cider_d", "painted.clip_score_judge", "painted.r_precision_judge"
FRECHET = "painted.frechet_judge"


def cost(title: str, digits: int = 0) -> Column:
    """A column of what something costs."""
    return Column(title, 1.0, higher_is_better=False, over="set", digits=digits)


COLUMNS: dict[str, Column] = {
    "caption.bleu_4": Column("B@4", over="set"),
    "caption.meteor": Column("METEOR", over="set"),
    "caption.rouge_l": Column("ROUGE-L"),
    CIDER_D: Column("CIDEr-D"),
    "caption.spice": Column("SPICE"),
    CLIP_SCORE: Column("CLIPScore"),
    FRECHET: Column("Fréchet distance (judge's space)", 1.0, higher_is_better=False, over="set", digits=4),
    "painted.r_precision_hard_judge": Column(
        "R-precision hard",
        parts=tuple(f"painted.r_precision_hard_{category}_judge" for category in CATEGORIES),
    ),
    EASY: Column("R-precision easy"),
    "painted.main_object": Column("main object found"),
    "vqa.accuracy": Column("VQA"),
    "caption.minutes": cost("training to caption, minutes", 1),
    "painted.minutes": cost("training to paint, minutes", 1),
    "caption.milliseconds": cost("a caption, ms"),
    "painted.milliseconds": cost("a painting, ms"),
    "caption.megabytes": cost("a caption, MB"),
    "painted.megabytes": cost("a painting, MB"),
}

# UMT table 2, on MSCOCO; R-precision by ViLBERT is left out, which we have not. Turbo-RL has no code anywhere: its numbers alone
PAPER_COLUMNS = dict.fromkeys(
    ("B@4", "M", "R", "C", "S", "CLIPScore", "FID", "CLIP hard", "CLIP easy"), "{:.1f}"
)
NOT_CAPTIONED, NOT_PAINTED = (None,) * 5, (None,) * 4
PAPER: dict[str, tuple[float | None, ...]] = {
    "ours": (37.3, 28.2, 57.9, 122.6, 21.9, 77.2, 29.9, 40.7, 69.9),
    "x_lxmert_ft": (30.2, 25.8, 53.3, 100.9, 19.1, 73.3, 33.9, 35.1, 62.3),
    "x_lxmert": (15.2, 22.7, 42.2, 41.0, 16.6, 72.9, 37.0, 36.3, 60.1),
    "butd": (36.3, 27.7, 56.9, 120.1, 21.4, *NOT_PAINTED),
    "dm_gan": (*NOT_CAPTIONED, 72.3, 35.9, 34.4, 69.1),
}

SAME = 0.02

CLAIMS: dict[str, Claim] = {
    "ours_over_ft": Claim(
        "Ours captions and paints better than X-LXMERT fine-tuned for each direction.",
        (
            Comparison(CIDER_D, "x_lxmert_ft", "better"),
            Comparison(CLIP_SCORE, "x_lxmert_ft", "better"),
            Comparison(EASY, "x_lxmert_ft", "better"),
            Comparison(FRECHET, "x_lxmert_ft", "better", counts=False),
        ),
        {
            (CLIP_SCORE, "x_lxmert_ft"): "a model of one task has all its size for it",
            (EASY, "x_lxmert_ft"): "a model of one task has all its size for it",
        },
    ),
    "ours_over_gan": Claim(
        "Ours paints better than a text-to-image GAN.",
        tuple(Comparison(column, "dm_gan", "better") for column in (CLIP_SCORE, FRECHET, EASY)),
    ),
    "unified_over_butd": Claim(
        "One model of both directions captions as well as a captioner.",
        (
            Comparison(CIDER_D, "butd", "not worse", SAME),
            Comparison(CIDER_D, "butd_grid", "not worse", SAME, counts=False),
        ),
        {(CIDER_D, "butd"): "a captioner alone spends all its training on the reward"},
    ),
}

TABLE = Table(
    name="table2",
    section=SystemsTableParams,
    folder="ablations/table2",
    title="Table 2 in miniature",
    introduction="Systems that caption and paint, on the same data, by the same judges, and what each costs.",
    note=(
        "Ours is the default run's recipe. X-LXMERT captions from the word A by Gibbs sampling and is fine-tuned for VQA; X-LXMERT-FT "
        "is it, fine-tuned one direction at a time in the steps that ours has for it. L-Verse paints the best of several by the "
        "scorer, and its minutes count both autoencoders; they do not count detector, codebook, image generator and CLIPs. Ours, "
        "X-LXMERT-FT and L-Verse paint with the guidance of `generate.paint` and `l_verse.generate`, the others have none. Time and "
        "memory of one caption or painting at a time, from features or tokens. A difference of VQA is between means over pictures. "
        "Turbo-RL has no code: its paper says CIDEr-D 74.8."
    ),
    rows=ROWS,
    columns=COLUMNS,
    done={"caption": "captioned", "painted": "painted"},
    claims=CLAIMS,
    paper=PaperTable(
        "The paper's table 2",
        "Huang et al. 2021, on MSCOCO; FID in Inception's space, R-precision by CLIP.",
        PAPER_COLUMNS,
        PAPER,
    ),
    gallery="painted",
    counted=("caption", "painted"),
    timed=(
        "compared_ours",
        "compared_x_lxmert",
        "compared_ft",
        "compared_l_verse",
        "compared_butd_grid",
        "compared_butd_regions",
        "compared_dm_gan",
    ),
    weights={
        "ours": 8.0,
        "biart": 8.0,
        "dm_gan": 6.0,
        "fine_tuned": 4.0,
        "butd_grid": 2.0,
        "butd_regions": 2.0,
        "x_lxmert_vqa": 4.0,
    },
)
