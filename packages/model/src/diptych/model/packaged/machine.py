"""Where a packaged model computes, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from diptych.model.errors import UserError
from diptych.model.precision import autocast_context


@dataclass(frozen=True)
class Machine:
    """Attributes:
    device: where the networks are.
    precision: of matrix products (:func:`diptych.model.precision.resolve_precision`).
    """

    device: torch.device
    precision: str

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the precision of products."""
        with torch.inference_mode(), autocast_context(self.device, self.precision):
            yield


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device; None takes CUDA where there is a device.

    Raises:
        UserError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device}: not there ({reason}); use cpu, or leave it out") from None
    return place
