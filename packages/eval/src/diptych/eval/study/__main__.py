"""python -m diptych.eval.study"""

from __future__ import annotations

import sys

from diptych.eval.study.command import main

sys.exit(main())
