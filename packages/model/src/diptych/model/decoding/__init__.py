"""Decoders: captions word by word or by beam search, paintings by mask-predict-k or cell by cell."""
