"""Importers of the released checkpoints of the family, and the exporter to Hugging Face's LXMERT.

``diptych import-checkpoint SOURCE OUT`` (:mod:`diptych.model.importers.convert`) writes a model directory and import.json,
which tells what became of each tensor; docs/importing.md has an example of each format.
The same in Python: :func:`diptych.model.importers.x_lxmert.import_generate_it` and its neighbours. To write and paint
as the released code does, decode with :data:`diptych.model.decoding.decisions.REFERENCE`; its 16 words are a caption length of
18 tokens here.
"""
