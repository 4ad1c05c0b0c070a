"""Kernels, each beside a plain reference with the same signature; `impl="auto"` picks one.

attention: on TPU JAX's splash attention (Pallas), elsewhere XLA by query blocks.
token_logprobs: log-prob and entropy of given tokens, chunked, never [B, T, V].
logprobs_at, top_logprobs: log-probs of several tokens a place; the likeliest ones; chunked too.
decode_attention: one new token a row over its cache and a prompt that rows share.
paged_attention: a few new tokens a row over pages of a pool and prompts that rows share; on TPU
  a Pallas kernel of our own.
project: the product with a weight, whose gradient transposes the smaller operand.
ragged_matmul: rows sorted by group, each times its group's matrix.
"""

from posttrain_jax.kernels.attention import attention
from posttrain_jax.kernels.candidates import logprobs_at, top_logprobs
from posttrain_jax.kernels.decode import decode_attention
from posttrain_jax.kernels.logprob import token_logprobs
from posttrain_jax.kernels.paged import paged_attention
from posttrain_jax.kernels.projection import project
from posttrain_jax.kernels.ragged import ragged_matmul

__all__ = [
    "attention",
    "decode_attention",
    "logprobs_at",
    "paged_attention",
    "project",
    "ragged_matmul",
    "token_logprobs",
    "top_logprobs",
]
