"""Verifiers: one file each, `score(response, example, **options) -> Verdict`.

Nothing here imports jax or flax: verifiers run in the workers of `pool.Pool`, which never touch
an accelerator. A response is the decoded completion without its end-of-sequence token.
"""
