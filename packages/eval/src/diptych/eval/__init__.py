"""Measuring captions and pictures: metrics, CLIP scorers, an independent inspector and the report.

This package knows neither the model nor the features; it takes captions, tensors and paths.
"""
