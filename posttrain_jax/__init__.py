"""posttrain_jax: name a published post-training recipe, and the whole pipeline runs.

Importing this package imports neither jax nor flax: `posttrain ls` answers at once and the
verifier workers never touch an accelerator.
"""

__version__ = "0.1.0"
