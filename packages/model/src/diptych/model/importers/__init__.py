"""Importers of the released checkpoints of the family, and the exporter to Hugging Face's LXMERT.

``python -m diptych.model.importers FORMAT SOURCE OUT`` writes a model directory.
"""
