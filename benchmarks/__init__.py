"""Measurements: both sides in one run, alternating, medians of ratios. They state, they never assert."""

import os

# One thread on both sides unless a caller says otherwise; numpy's BLAS looks here when it is loaded.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
