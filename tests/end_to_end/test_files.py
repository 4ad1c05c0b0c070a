"""Files of weights, read and written by several processes."""

from pathlib import Path

import jax
import pytest

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import find_config, make_model
from posttrain_jax.models.safetensors import save_pretrained


@pytest.fixture
def stored(tmp_path) -> Path:
    """A folder of random weights in several shards."""
    config = find_config("tiny:student")
    params = make_model(config).init(jax.random.key(0))
    save_pretrained(
        tmp_path / "stored", config, params, load_tokenizer("tiny"), shard_bytes=200_000
    )
    return tmp_path / "stored"


def test_two_processes_carry_every_weight_from_file_to_file(posttrain, stored, tmp_path):
    recipe = Path(__file__).parents[1] / "recipes" / "carry.py"
    words = ("launch", "local", "--processes", "2", "--devices-per-process", "2", recipe)
    given = (f"--config.stages.read.source={stored}", "--workdir", tmp_path / "run")
    code, out, err = posttrain(*words, *given)
    assert code == 0, out + err
    (folder,) = (tmp_path / "run" / "artifacts").glob("export-*")
    assert tensors(folder / "model") == tensors(stored)


def tensors(folder: Path) -> dict[str, bytes]:
    """All tensors of a folder's safetensors files, as bytes."""
    from safetensors.numpy import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {name: x.tobytes() for file in files for name, x in load_file(file).items()}
