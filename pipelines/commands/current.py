"""Whether what a stage has made is of the present parameters, inputs and code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipelines.runner.code import FOLDER, code_of
from pipelines.runner.params import ParameterError


def is_current(stage: str) -> bool:
    """Whether DVC takes stage `stage` of dvc.yaml for up to date, and its code is what the stage `code` has written down, all
    that DVC sees of it. Raises ParameterError where DVC cannot say.
    """
    file = f"{FOLDER}/{stage}.json"
    if not Path(file).is_file() or json.loads(Path(file).read_text(encoding="utf-8")) != code_of(file):
        return False
    asked = [sys.executable, "-m", "dvc", "--wait-for-lock", "status", "--json", stage]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ParameterError(f"dvc status {stage}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return not json.loads(done.stdout)
