"""The sizes of the `tiny` presets: trained from scratch in a minute on two CPU cores (ours)."""

from posttrain_jax.models.config import ModelConfig

_BASE = ModelConfig(
    vocab_size=656,
    layers=2,
    width=128,
    heads=4,
    kv_heads=4,
    head_dim=32,
    ffn=256,
    rope_theta=100.0,
    max_length=64,
    pad_id=0,
)

SIZES = {
    "base": _BASE,
    "student": ModelConfig(
        vocab_size=656,
        layers=2,
        width=96,
        heads=4,
        kv_heads=4,
        head_dim=24,
        ffn=160,
        rope_theta=100.0,
        max_length=64,
        pad_id=0,
    ),
}
