"""``diptych import-checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.model.command.pictures import as_their_bytes


def import_checkpoint(
    source: Annotated[
        Path, typer.Argument(help="A .pth or .ckpt file, or a folder of Hugging Face's.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.", show_default=False)],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="x-lxmert, generate-it, lxmert, uniter, bert, image-generator or aug-vae, or to-lxmert, which exports; found "
            "out from SOURCE if not given.",
            show_default=False,
        ),
    ] = None,
    codebook: Annotated[
        Path | None, typer.Option(help="Centroids, .npy or .safetensors, where SOURCE has none.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of tokenizer files, where SOURCE has none.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="A named size or a config.json of ours; if not given, base for bert, image-generator and aug-vae, and that of "
            "SOURCE for the others.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of weights that a checkpoint of lxmert, uniter or bert lacks; 0 if not given.",
            show_default=False,
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Answers of SOURCE's answer head, such as LXMERT's all_ans.json; without them it is left out."
        ),
    ] = None,
) -> None:
    """Turn a checkpoint of X-LXMERT, LXMERT, UNITER, generate-it, BERT, X-LXMERT's image generator or L-Verse's AugVAE into a folder of
    ours.

    Nothing of it is executed. OUT/import.json tells what became of every tensor.
    """
    from diptych.model.importers.convert import ImportRequest, import_into
    from diptych.model.importers.detect import detect_format

    as_their_bytes()
    request = ImportRequest(
        form or detect_format(source), source, out, codebook, tokenizer, size, seed, answers
    )
    print(f"{out}: {import_into(request)}")
