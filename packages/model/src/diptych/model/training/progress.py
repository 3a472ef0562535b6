"""What a training shows while it runs: the figures of its last steps, and a bar."""

from __future__ import annotations

import math
import time

from torch import Tensor
from tqdm import tqdm

from diptych.model.errors import UserError
from diptych.model.training.processes import Processes


class Figures:
    """The figures since the last history row, and the check that they are finite."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sums: dict[str, list[float]] = {}  # figure: total and count
        self.saved_step: int | None = 0  # None: another process's to know
        self._recent: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def add(self, step: int, loss: Tensor, figures: dict[str, Tensor]) -> None:
        """Take a step's loss and figures, among them ``gradient_norm``, without looking at them."""
        self._recent.append((step, loss, figures))

    def collect(self) -> None:
        """Add what :meth:`add` has taken to the sums. UserError at the first step that is not finite."""
        for step, loss, figures in self._recent:
            norms = [value.item() for key, value in figures.items() if key.endswith("gradient_norm")]
            if not math.isfinite(sum(norms) + loss.item()):
                shown = " and ".join(map(str, norms))
                raise UserError(
                    f"{self.name}: loss {loss.item()} and gradient norm {shown} at step {step}; "
                    f"{self.last_good()}; lower learning_rate, use precision float32, or look for such in the data"
                )
            for key, value in figures.items():
                total = self.sums.setdefault(key, [0.0, 0.0])
                total[0] += float(value)
                total[1] += 1
        self._recent.clear()

    def means(self) -> dict[str, float]:
        """Return the mean of every figure, and start anew."""
        means = {key: total / count for key, (total, count) in self.sums.items()}
        self.sums = {}
        return means

    def last_good(self) -> str:
        """Say which checkpoint a run can go on from."""
        if self.saved_step is None:
            return "what is saved is good"
        if not self.saved_step:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is of step {self.saved_step}"


class Progress:
    """A bar of steps with the time left, samples per second and the latest means; only process 0 shows it."""

    def __init__(self, name: str, start: int, steps: int, processes: Processes) -> None:
        self._bar = tqdm(
            total=steps, initial=start, desc=name, unit="step", mininterval=1, disable=processes.rank > 0
        )
        self._processes = processes.count
        self._started_at = time.monotonic()
        self._samples = 0
        self._means: dict[str, str] = {}

    def step(self, samples: int) -> None:
        """Count one step of ``samples`` captions or pictures in this process."""
        self._samples += samples * self._processes
        rate = self._samples / (time.monotonic() - self._started_at)
        self._bar.set_postfix({"samples/s": f"{rate:.4g}", **self._means}, refresh=False)
        self._bar.update()

    def show(self, means: dict[str, float]) -> None:
        """Show these figures from now on."""
        self._means = {key: f"{value:.3f}" for key, value in means.items()}

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
