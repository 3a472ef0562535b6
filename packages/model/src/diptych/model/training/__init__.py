"""Training of the transformer: token level (stage 1), then sequence level (stage 2)."""
