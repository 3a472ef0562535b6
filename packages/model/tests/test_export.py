"""Exported programs do what the decoders do, and a card tells what it is given."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.errors import UserError
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.packaged import export
from diptych.model.packaged.card import CardFacts, model_card, unified_facts
from diptych.model.pretrained import load_transformer

TEXTS = ["a red kite floats.", "two blue boats rest on the sea.", "a green house."]


@pytest.mark.parametrize("parts", ["prefix", "masked", pytest.param("discrete", marks=pytest.mark.slow), "single_stream"], indirect=True, scope="session")
def test_programs_agree_with_the_decoders(parts, tmp_path: Path) -> None:
    """For other numbers of rows than those they were exported with, one among them."""
    torch.manual_seed(5)
    model, tokenizer, codebook = load_transformer(parts.transformer)
    generator = load_image_generator(parts.image_generator)
    captioning, painting = CaptionOptions(length=12), PaintOptions(steps=3, guidance=1.5)
    features = torch.rand(5, 64, 12) * 3
    agreement = export.export_programs(
        tmp_path, model, tokenizer, codebook, generator, captioning, painting, features, TEXTS
    )
    assert agreement["captions"] == 1 and agreement["cells"] > 0.99 and agreement["pixels"] < 1e-5
    program = torch.export.load(tmp_path / export.GENERATOR_FILE).module()
    assert program(torch.zeros(1, 64, dtype=torch.int64)).shape == (1, 3, 16, 16)
    for file in tmp_path.glob("*.pt2"):
        with zipfile.ZipFile(file) as content:
            for name in content.namelist():  # a pickle of protocol 2 and later begins so
                assert not content.read(name).startswith((b"\x80\x02", b"PK")), name


def test_a_program_that_does_something_else_is_an_error(parts, tmp_path: Path, monkeypatch) -> None:
    model, tokenizer, codebook = load_transformer(parts.transformer)
    generator = load_image_generator(parts.image_generator)

    def other(module, examples, file):
        if isinstance(module, export.Painter):
            return lambda ids, codes, masked: (codes + 1, torch.zeros(codes.shape))
        return module

    monkeypatch.setattr(export, "exported", other)
    options = CaptionOptions(length=12), PaintOptions(steps=3)
    features = torch.rand(5, 64, 12) * 3
    with pytest.raises(UserError, match="the programs do not do what the decoders do"):
        export.export_programs(tmp_path, model, tokenizer, codebook, generator, *options, features, TEXTS)
    rows = PaintOptions(method="rows")
    with pytest.raises(UserError, match="method rows cannot be exported"):
        export.export_programs(
            tmp_path, model, tokenizer, codebook, generator, options[0], rows, features, TEXTS
        )


def test_a_card_tells_what_it_is_given(parts, answering_package: Path) -> None:
    facts = CardFacts(
        title="A model",
        data="Drawn scenes.",
        pictures={"train": 4000, "test": 500},
        figures={"caption.cider_d": "4.298 (4.21 to 4.39)", "unknown.name": "1"},
        limits=("It is small.",),
        commit="abc1234",
        parameters={"seed": 0, "generate": {"paint": {"guidance": 2.0}}},
        captioning=CaptionOptions(length=12),
        painting=PaintOptions(guidance=2.0),
        weights="int8",
        exported=True,
    )
    card = model_card(facts, unified_facts(parts.transformer, parts.image_generator))
    for text in (
        "# A model",
        "4,000 train, 500 test",
        "| captions: CIDEr-D (1.0 is the papers' 100%) | 4.298 (4.21 to 4.39) |",
        "- It is small.",
        "Commit `abc1234`",
        '"guidance": 2.0',
        "stored as int8",
        "before matrices were rounded",
        "`exported/` holds",
        "prefix attention",
        "`length=12, method=greedy`",
    ):
        assert text in card
    assert "unknown" not in card and card.startswith("---\nlibrary_name: diptych")
    assert "answer" not in card
    of_answers = model_card(facts, unified_facts(answering_package, parts.image_generator))
    for text in ("paints captions and answers questions", ", visual-question-answering]", "d.answer(", "captioned, asked"):
        assert text in of_answers
