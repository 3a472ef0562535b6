"""A packaged model: one directory with everything that captions and paints, and nothing that is executed.

::

    config.json          format_version, the transformer's sizes, how it captions and paints unless asked otherwise
    model.safetensors    the transformer
    tokenizer.json, tokenizer_config.json
    codebook/            codebook.safetensors; examples.safetensors: picture patches of each code (optional)
    image_generator/     config.json, model.safetensors
    detector/            config.json, model.safetensors
    scorer/              a CLIP, for reranking and scores (optional)
    exported/            captioner.pt2, painter.pt2: programs of torch.export (optional)
    README.md            the model card
    SHA256SUMS           of all files above; loading compares them (`sha256sum -c SHA256SUMS` does too)

:class:`diptych.model.Diptych` uses it; :func:`diptych.model.packaged.directory.write_package` makes it of the parts.
"""
