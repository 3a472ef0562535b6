"""Values of options that `diptych-eval` and `diptych-study` share, checked as `diptych` checks them; and closed pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.eval.errors import UserError

CLOSED_PIPE = 141  # 128 + SIGPIPE, the status of any program whose reader went away


def check_seed(seed: int) -> None:
    """Raise UserError for a seed that random generators or a study's file cannot hold."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed: a whole number from 0 to 2**63 - 1, is {seed}")


def check_whole(name: str, value: int, least: int, most: int = 2**31 - 1) -> None:
    """Raise UserError where the option `name`, as in image_size, is not from `least` to `most`."""
    for wrong, bound in ((value < least, f"at least {least}"), (value > most, f"at most {most}")):
        if wrong:
            raise UserError(f"--{name.replace('_', '-')}: must be {bound}, is {value}")


def check_output(path: Path | None) -> None:
    """Raise UserError where no file of that name can be written; None is none wanted."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")


def resolve_device(device: str) -> str:
    """The name of the device; "auto" takes CUDA where there is one. Raises UserError where there is no such device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: not there ({reason}); use cpu, or leave it out") from None
    return device


@contextmanager
def quiet_when_closed() -> Iterator[None]:
    """Write stdout out in the block; a reader that went away (`| head -1`) ends the process quietly, with CLOSED_PIPE."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # what Python would still write at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
