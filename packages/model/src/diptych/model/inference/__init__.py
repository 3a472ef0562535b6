"""Frozen copies of networks that only decode: the same results, sooner."""
