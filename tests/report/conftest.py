"""A realistic run folder of the R1 recipe, written by hand-set numbers: `run_folder` makes one."""

import json
import math
import random
from pathlib import Path

import pytest

HOSTILE = "<script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)>"
REWARDS = ("accuracy", "format", "language")
# name, kind, inputs by role, seconds, figures of its evaluation: (pass@1, greedy, length, language)
STAGES = [
    ("pretrain", "pretrain", {}, 81.0, (0.178, 0.771, 13.5, 0.88)),
    ("r1_zero", "rl", {"policy": "pretrain"}, 30.5, (0.736, 0.826, 27.2, 0.62)),
    ("cold_start", "sft", {"policy": "pretrain"}, 6.2, (0.711, 0.799, 26.4, 0.97)),
    ("reasoning_rl", "rl", {"policy": "cold_start"}, 22.4, (0.904, 0.998, 27.0, 0.99)),
    ("samples", "generate", {"policy": "reasoning_rl"}, 7.0, None),
    ("kept", "reject", {"data": "samples"}, 1.3, None),
    (
        "sft_from_base", "sft", {"policy": "pretrain", "data": "kept"}, 9.1,
        (0.75, 0.809, 26.9, 0.98),
    ),
    ("preference_model", "reward_model", {"policy": "pretrain"}, 9.0, None),
    (
        "all_scenarios_rl", "rl",
        {"policy": "sft_from_base", "reward_model": "preference_model"}, 14.0,
        (0.918, 0.996, 26.8, 0.99),
    ),
    ("student_pretrain", "pretrain", {}, 44.0, (0.139, 0.502, 14.1, 0.9)),
    (
        "student_distilled", "distill", {"policy": "student_pretrain", "data": "kept"}, 18.0,
        (0.441, 0.768, 27.2, 0.98),
    ),
]  # fmt: skip
TASKS = ("arithmetic", "word_problem", "logic")


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def rl_steps(rng: random.Random, count: int) -> list[dict]:
    rows = []
    for step in range(count):
        done = 1 - math.exp(-5 * step / count)
        accuracy = min(1.0, max(0.0, 0.3 + 0.55 * done + rng.gauss(0, 0.04)))
        language = min(1.0, 0.85 + 0.14 * done + rng.gauss(0, 0.01))
        rows.append(
            {
                "step": step, "seconds": 1.4, "reward": accuracy + 0.2 + 0.3 * language,
                "reward/accuracy": accuracy, "reward/format": min(1.0, 0.72 + 0.28 * done),
                "reward/language": language, "accuracy": accuracy,
                "length": 14 + 13 * done + rng.gauss(0, 0.5), "kl": 0.004 * done,
                "entropy": 0.33 - 0.2 * done + rng.gauss(0, 0.01),
                "logprob_gap": 10 ** rng.uniform(-5.2, -4.4), "clip_fraction": 0.02 * done,
                "all_equal_groups": 0.3 * done, "truncated": 0.08 * (1 - done), "masked": 0.0,
                "tokens_per_second": rng.gauss(5200, 300) if step else 900.0,
                "seconds_sample": 0.6, "seconds_verify": 0.01, "seconds_update": 0.8,
            }
        )  # fmt: skip
    return rows


def sft_steps(rng: random.Random, count: int) -> list[dict]:
    return [
        {
            "step": step, "seconds": 0.1, "loss": 3.2 * math.exp(-4 * step / count) + 0.4
            + rng.gauss(0, 0.05), "tokens_per_second": rng.gauss(15000, 700),
            "grad_norm": 1 + rng.random(), "learning_rate": 3e-3 * (1 - 0.9 * step / count),
        }
        for step in range(count)
    ]  # fmt: skip


def rollouts(rng: random.Random, count: int, hostile: bool) -> list[dict]:
    rows = []
    for i in range(count):
        right, chinese = rng.random() < 0.7, rng.random() < 0.4
        a, b = rng.randint(2, 12), rng.randint(2, 8)
        answer = a + b if right else a + b + 1
        prompt = (
            f"小明有 {a} 个苹果，又买了 {b} 个，一共有多少个？"
            if chinese
            else f"Tom has {a} apples and buys {b} more. How many?"
        )
        thought = (
            f"先有 {a} 个，再加 {b} 个，得 {answer} 个。"
            if chinese
            else f"Start with {a}. Add {b}: {answer}."
        )
        finished = rng.random() < 0.9
        response = (
            f"<think> {thought} </think> <answer> {answer} </answer>"
            if finished
            else f"<think> {thought} wait,"
        )
        scores = {
            "accuracy": float(right and finished),
            "format": float(finished),
            "language": round(rng.uniform(0.8, 1), 3),
        }
        rows.append(
            {
                "step": 10 * (i % 3), "prompt": prompt, "response": response, "rewards": scores,
                "reward": scores["accuracy"] + 0.2 * scores["format"] + 0.3 * scores["language"],
                "example_id": f"arithmetic-{'zh' if chinese else 'en'}-{i:010x}",
                "finished": finished,
            }
        )  # fmt: skip
    if hostile and rows:
        rows[0] |= {
            "prompt": HOSTILE,
            "response": f"{HOSTILE} \u202egnp.exe \x00 ``` </pre>",
            "reward": 9.0,
            "step": 20,
        }
    return rows


def evaluation(figures, n=512) -> dict:
    pass1, greedy, length, language = figures
    share = lambda p: {"mean": p, "stderr": math.sqrt(p * (1 - p) / n), "n": n}  # noqa: E731
    metrics = {
        "pass@1": share(pass1), "greedy": share(greedy), "maj@4": share(min(1.0, pass1 + 0.05)),
        "pass@4": share(min(1.0, pass1 + 0.08)), "length": {"mean": length, "stderr": 0.21, "n": n},
        "format": share(0.97), "language": share(language), "refuse_harmful": share(0.5),
        "answer_harmless": share(0.93),
    }  # fmt: skip
    for i, task in enumerate(TASKS):
        metrics[f"pass@1/{task}"] = share(max(0.0, pass1 - 0.05 * i))
        metrics[f"greedy/{task}"] = share(max(0.0, greedy - 0.05 * i))
    return metrics


def own_files(folder: Path, kind: str, steps: int, hostile: bool) -> dict:
    """Write a stage's curves and samples; return its own metrics."""
    rng = random.Random(folder.name)
    if kind == "rl":
        rows = rl_steps(rng, steps)
        write_lines(folder / "metrics.jsonl", rows)
        write_lines(folder / "samples.jsonl", rollouts(rng, 60, hostile))
        return {"skipped_steps": {"mean": 0, "stderr": 0, "n": steps}}
    if kind in ("pretrain", "sft", "distill", "reward_model"):
        write_lines(folder / "metrics.jsonl", sft_steps(rng, steps * 4))
    if kind == "reward_model":
        return {"pair_accuracy": {"mean": 0.99, "stderr": 0.007, "n": 200}}
    if kind == "generate":
        return {"samples": {"mean": 1536, "stderr": None, "n": 1536}}
    if kind == "reject":
        return {
            "kept": {"mean": 420, "stderr": None, "n": 1536},
            "duplicates_dropped": {"mean": 88, "stderr": None, "n": 1536},
        }
    return {}


@pytest.fixture
def run_folder(tmp_path):
    """`run_folder(steps=26, stages=None, hostile=False)` writes a run and returns its folder."""

    def make(steps: int = 26, stages=None, hostile: bool = False, into: Path | None = None) -> Path:
        return write_run(into or tmp_path / "run", stages or STAGES, steps, hostile)

    return make


def write_run(root: Path, stages, steps: int, hostile: bool) -> Path:
    record, every = {}, []
    for name, kind, inputs, seconds, figures in stages:
        every.append((name, kind, inputs, seconds, None))
        if figures:
            every.append((f"evaluate_{name}", "evaluate", {"policy": name}, 2.5, figures))
    ids = {name: f"{i:012x}" for i, (name, *_) in enumerate(every, start=0xABC0)}
    for name, kind, inputs, seconds, figures in every:
        folder = root / "artifacts" / f"{name}-{ids[name]}"
        folder.mkdir(parents=True)
        own = evaluation(figures) if figures else own_files(folder, kind, steps, hostile)
        phases = {"compile": 0.2 * seconds, "update": 0.5 * seconds}
        phases |= {"sample": 0.2 * seconds, "verify": 0.05 * seconds} if kind == "rl" else {}
        write_json(
            folder / "artifact.json",
            {
                "stage": name, "kind": kind, "id": ids[name], "config": {}, "code": "c0de" * 8,
                "inputs": {role: {"stage": s, "id": ids.get(s, "")} for role, s in inputs.items()},
                "tokenizer_hash": "70c" * 20, "template_hash": "7e3" * 20, "metrics": own,
                "seconds": seconds, "phases": phases,
            },
        )  # fmt: skip
        (folder / "DONE").touch()
        record[name] = {
            "kind": kind, "id": ids[name], "path": f"artifacts/{folder.name}", "inputs": inputs,
            "status": "done", "seconds": seconds, "reused": name == "pretrain",
        }  # fmt: skip
    config = {"recipe": "r1.py", "preset": "tiny", "seed": 0, "order": list(record)}
    config["stages"] = {
        n: {"kind": s["kind"], "lr": 1e-4, "loss": {"kl_coef": 0.001}} for n, s in record.items()
    }
    write_json(root / "config.json", config)
    write_json(
        root / "run.json",
        {
            "recipe": "r1.py", "preset": "tiny", "seed": 0, "order": list(record),
            "versions": {"posttrain_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.9"},
            "device": "cpu x 1 (2 cores)", "stages": record,
            "seconds": sum(s["seconds"] for s in record.values()),
        },
    )  # fmt: skip
    return root
