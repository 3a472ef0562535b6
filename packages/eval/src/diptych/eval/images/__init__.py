"""Measuring pictures: `metrics.measure_images` gives the papers' figures of them."""
