"""One file = one model; the file's name is ``model.name`` in a config.

A model file offers ``Config`` (pydantic: what a config says under ``model``), ``arguments(config, fields, ...)`` (plain
values from a config and a loader's fields) and ``build(arguments, generator)``: a module that draws its masks
(``masks``) and turns a batch into losses (``forward``) and into features (``features``).
"""
