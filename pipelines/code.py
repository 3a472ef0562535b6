"""What code each stage runs, as digests: every other stage's dependency on code, in one line of its own.

code/train_token.json names the modules that `python -m pipelines.train_token` runs. It changes when one of them changes in more
than a comment, a docstring or its layout (pipelines/runner/code.py); no other change of code reruns `train_token`.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.runner.code import FOLDER, Code, entries
from pipelines.runner.errors import one_line_errors
from pipelines.runner.places import check_places
from pipelines.runner.writing import writing


def main() -> None:
    """Write code/, a file for each stage of all pipelines, each table and each source, module by module."""
    code = Code()
    with writing(FOLDER) as folder:
        for file, entry in entries().items():
            path = folder / Path(file).relative_to(FOLDER)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(code.of(entry), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors("code"):
        check_places()
        main()
