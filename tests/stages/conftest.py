"""Texts as the rollout that they could come from."""

import numpy as np
import pytest

from posttrain_jax.api import Rollout
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import shard_rows


@pytest.fixture
def as_rollout(small):
    """`(texts, finished) -> (rollout on the mesh, its tokens row by row, the tokenizer)`."""
    tokenizer = load_tokenizer("tiny")

    def make(texts, finished):
        rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        shape = len(rows), max(map(len, rows))
        tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = row, True
        logp = np.zeros(shape, np.float32)
        whole = Rollout(tokens, tokens, tokens, mask, logp, logp, np.array(finished))
        return shard_rows(small.mesh, whole), rows, tokenizer

    return make
