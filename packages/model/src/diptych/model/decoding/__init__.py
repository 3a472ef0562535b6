"""Decoders: captions word by word, paintings by mask-predict-k."""
