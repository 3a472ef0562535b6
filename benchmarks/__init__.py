"""Measurements: both sides in one run, alternating, medians of ratios. They state, they never assert."""
