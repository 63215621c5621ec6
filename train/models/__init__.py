"""One file = one model; the file's name is ``model.name`` in a config.

A model file offers ``Config`` (pydantic: what a config says under ``model``), ``modalities(config, anchor, tasks)``
(what to load of a corpus, None for everything), ``arguments(config, fields, anchor, tasks)`` (plain values of a config
and the loader's fields) and ``build(arguments, generator)``: a module that draws its masks (``masks``), turns a batch
into losses (``forward``, named ``loss_names``) and features (``features``) of its ``inputs`` (name -> side of a patch).
"""
