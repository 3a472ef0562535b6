"""A clone whose stages run on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_clone import Clone

from pipelines.runner.writing import remove


def on_cluster(
    finished: Clone, folder: Path, cluster: Any, outs: list[str], processes: int | str, *overrides: str
) -> Clone:
    """A copy without these outputs whose stages run on the cluster."""
    clone = finished.copy(folder)
    clone.set_params(f"machine.ray_address='{cluster.address}'", f"machine.processes={processes}", *overrides)
    for out in outs:
        remove(clone.folder / out)
    return clone


def run(clone: Clone, stage: str) -> str:
    """Run a stage to its good end; what it says on stderr."""
    done = clone.run("python", "-m", f"pipelines.{stage}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr
