"""Kernels, each beside a plain reference with the same signature; `impl="auto"` picks one.

attention: on TPU JAX's splash attention (Pallas), elsewhere XLA by query blocks.
token_logprobs: log-prob and entropy of given tokens, chunked, never [B, T, V].
"""

from posttrain_jax.kernels.attention import attention, decode_attention
from posttrain_jax.kernels.logprob import token_logprobs

__all__ = ["attention", "decode_attention", "token_logprobs"]
