"""Metrics of answers: VQA v2's, GQA's and NLVR2's, each exactly as its official script counts.

`normalisation` and `soft_scores` are for trainings too. Nothing is imported here: a training must not hang on how answers
are measured.
"""
