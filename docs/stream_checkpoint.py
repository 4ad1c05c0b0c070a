"""Streams a synthetic sharded checkpoint onto an eight-device mesh and measures host memory.

    python docs/stream_checkpoint.py FOLDER [--gigabytes 2]

FOLDER gets a Llama-shaped checkpoint of random bfloat16 weights in files of 500 MB, unless it has
one. A child process with eight virtual CPU devices reads it onto a mesh of fsdp 4 x tensor 2 and
prints its peak resident memory. On a CPU the devices' buffers are host memory too, so the size of
the parameters is subtracted; what remains (the interpreter, jax, mapped pages of the file and
buffers) is held against twice the largest tensor plus 1 GB. Exit code 1 where it is above.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.layout import lead, rows, shapes
from posttrain_jax.models.llama import WEIGHTS
from posttrain_jax.models.safetensors import save_pretrained
from posttrain_jax.models.streaming import Leaf

LAYER_BYTES = 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
CHILD = """
import json, sys, time
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import from_pretrained
from posttrain_jax.models.safetensors import open_folder

def status(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name + ":"))
    return int(line.split()[1]) * 1024

mesh, begun = make_mesh({"fsdp": 4, "tensor": 2}), status("VmRSS")
start = time.monotonic()
_, params, _ = from_pretrained(sys.argv[1], mesh)
seconds = time.monotonic() - start
held = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
stored = open_folder(sys.argv[1]).tensors.values()
largest = max(t.read().nbytes for t in stored)
print(json.dumps({"before": begun, "peak": status("VmHWM"), "parameters": held,
                  "largest": largest, "seconds": seconds}))
"""


def make(folder: Path, gigabytes: float) -> None:
    """Write the checkpoint, tensor by tensor."""
    layers = max(1, round((gigabytes * 1e9 - 2 * 2 * 64000 * 2048) / LAYER_BYTES))
    config = ModelConfig(
        vocab_size=64000, layers=layers, width=2048, heads=16, kv_heads=4, head_dim=128, ffn=8192,
        tied=False, param_dtype="bfloat16",
    )  # fmt: skip
    rng, params = np.random.default_rng(0), {}
    for path, (name, _) in rows(WEIGHTS, config).items():
        shape, depth = shapes(config)[path].shape, lead(name)

        def read(*index: int, shape: tuple[int, ...] = shape[depth:]) -> np.ndarray:
            return (rng.random(shape, np.float32) / 32).astype(ml_dtypes.bfloat16)

        *parents, last = path.split("/")
        node = params
        for step in parents:
            node = node.setdefault(step, {})
        node[last] = Leaf(shape, np.dtype(ml_dtypes.bfloat16), depth, read)
    save_pretrained(folder, config, params, load_tokenizer("tiny"), shard_bytes=500 * 10**6)


def main() -> int:
    """Make the checkpoint where there is none, read it in a child, print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    args = parser.parse_args()
    if not (args.folder / "config.json").is_file():
        jax.config.update("jax_platforms", "cpu")
        make(args.folder, args.gigabytes)
    files = sorted(args.folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    command = [sys.executable, "-c", CHILD, str(args.folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return 1
    said = json.loads(done.stdout)
    over, bound = said["peak"] - said["parameters"], 2 * said["largest"] + 10**9
    print(f"checkpoint          {size / 1e6:8.0f} MB in {len(files)} files")
    print(f"parameters          {said['parameters'] / 1e6:8.0f} MB on eight devices")
    print(f"largest tensor      {said['largest'] / 1e6:8.0f} MB")
    print(f"before the load     {said['before'] / 1e6:8.0f} MB")
    print(f"peak                {said['peak'] / 1e6:8.0f} MB")
    print(
        f"peak - parameters   {over / 1e6:8.0f} MB; bound 2 x largest + 1 GB: {bound / 1e6:.0f} MB"
    )
    print(f"seconds             {said['seconds']:8.1f}")
    return int(over > bound)


if __name__ == "__main__":
    sys.exit(main())
