"""Read before any test imports torch, because OpenMP looks at its environment when it is loaded."""

import os

# As in the pipeline: idle threads that spin make small tests forty times slower on cores that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
