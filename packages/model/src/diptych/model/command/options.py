"""What several commands share: the options that name a model, and how warnings look."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.model.errors import UserError

if TYPE_CHECKING:
    from diptych.model import Diptych

MODEL_VARIABLE = "DIPTYCH_MODEL"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar=MODEL_VARIABLE,
        help="Folder of a packaged model, or a repository of the Hugging Face Hub (OWNER/NAME).",
        show_default=False,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Such as cpu or cuda:1; CUDA where there is a device.", show_default=False)
]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, or auto: what this machine is fast at.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]
Seed = Annotated[int, typer.Option(help="Of what is random: the same seed, the same result.")]
BatchSize = Annotated[int, typer.Option(min=1, help="How many at a time.")]


def load_model(model: str | None, device: str | None, precision: str) -> Diptych:
    """Load the model that a command line names.

    Raises:
        UserError: it names none, or this one cannot be used.
    """
    if not model:
        raise UserError(
            f"no model is named; give --model FOLDER (or OWNER/NAME), or set {MODEL_VARIABLE}. The pipeline makes one "
            "in models/package"
        )
    warnings.showwarning = show_warning
    try:
        from diptych.model import Diptych
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed; `pip install diptych-model[use]`, then `diptych doctor` "
            "tells what else is missing"
        ) from None
    from diptych.features.processor import fit_torch_threads

    fit_torch_threads()
    return Diptych.from_pretrained(model, device, precision)


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning as one line without the place in the code where it arose."""
    print(f"diptych: {message}", file=sys.stderr)


def given(**options) -> dict:
    """The options that the command line names."""
    return {name: value for name, value in options.items() if value is not None}
