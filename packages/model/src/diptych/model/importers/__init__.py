"""Importers of the released checkpoints of the family, and the exporter to Hugging Face's LXMERT.

``python -m diptych.model.importers FORMAT SOURCE OUT`` writes a model directory and import.json, which tells what
became of each tensor::

    generate-it it_generator.pth OUT --tokenizer bert-base-uncased
    x-lxmert Epoch20_LXRT.pth OUT --tokenizer bert-base-uncased --answers all_ans.json
    lxmert lxmert-base-uncased OUT --codebook codebook.safetensors --answers all_ans.json
    lxmert BEST.pth OUT --codebook codebook.safetensors --tokenizer bert-base-uncased --answers trainval_label2ans.json
    uniter uniter-base.pt OUT --codebook codebook.safetensors --tokenizer bert-base-cased
    bert bert-base-uncased OUT --codebook codebook.safetensors
    image-generator G_60.pth OUT
    to-lxmert MODEL_DIRECTORY OUT

``--tokenizer`` is a folder with vocab.txt or tokenizer.json; ``--codebook`` the centroids, where the source has none;
``--answers`` lists what the rows of its answer head mean, without which that head is left out.
The same in Python: :func:`diptych.model.importers.x_lxmert.import_generate_it` and its neighbours. To write and paint
as the released code does, decode with :data:`diptych.model.decoding.decisions.REFERENCE`; its 16 words are a caption length of
18 tokens here.
"""
