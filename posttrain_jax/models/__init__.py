"""Models as pure functions. A family is a file with `SIZES: dict[str, ModelConfig]`."""

from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.families import find_config, parameter_count
from posttrain_jax.models.pretrained import from_pretrained
from posttrain_jax.models.transformer import Cache, make_model

__all__ = [
    "Cache",
    "ModelConfig",
    "find_config",
    "from_pretrained",
    "make_model",
    "parameter_count",
]
