"""Stages: `run(config, workdir, inputs) -> Artifact`, one readable loop a file.

A stage's file name is its kind. `DEFAULTS` is a literal with all its settings: `...` must be given
by the recipe, `{}` is an open group.
"""
