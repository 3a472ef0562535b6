"""Losses: token level, sequence level, and the perceptual loss of pixels."""
