"""docs/tabulate.py on run folders made by hand."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "tabulate.py"
SCORE = {  # pass@1 of the policies by seed
    "base": (0.2, 0.3),
    "rl": (0.5, 0.9),
    "dpo": (0.4, 0.4),
}


def write(run, name, kind, inputs, metrics, rows=(), **config):
    """One finished stage; returns its entry of run.json."""
    folder = run / "artifacts" / name
    folder.mkdir(parents=True)
    told = {metric: {"mean": value} for metric, value in metrics.items()}
    (folder / "artifact.json").write_text(json.dumps({"config": config, "metrics": told}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": kind, "path": f"artifacts/{name}", "inputs": inputs, "status": "done"}


def stages_of(run, seed):
    """A base; RL with a slow first step and redrawn groups; DPO on the base's samples."""

    def train(seconds, **more):
        return [{"step": i + 1, "seconds": s, **more} for i, s in enumerate(seconds)]

    rl = train((60.0, 2.0, 2.0), tokens=100, verifier_samples=30)
    rl[-1]["verifier_samples"] = 45
    rows = {"base": train((1.0,)), "rl": rl, "dpo": train((9.0, 1.0, 1.0))}
    made = {
        "base": write(run, "base", "pretrain", {}, {}, rows["base"]),
        "samples": write(run, "samples", "generate", {"policy": "base"}, {}, train((3.0, 3.0))),
        "pairs": write(run, "pairs", "pairs", {"samples": "samples"}, {}, train((0.5,))),
        "rl": write(run, "rl", "rl", {"policy": "base"}, {}, rows["rl"], rollout_size=10),
        "dpo": write(run, "dpo", "preference", {"policy": "base", "pairs": "pairs"}, {},
                     rows["dpo"]),
        "judge": write(run, "judge", "reward_model", {"pairs": "pairs"}, {"pair_accuracy": 0.75}),
    }  # fmt: skip
    data = "".join(json.dumps({"length": length}) + "\n" for length in (4, 6, 20))
    (run / "artifacts" / "samples" / "data.jsonl").write_text(data)
    for policy, values in SCORE.items():
        found = {"pass@1": values[seed], "length": 12.34}
        inputs = {"policy": policy}
        made[f"eval_{policy}"] = write(run, f"eval_{policy}", "evaluate", inputs, found)
    brief = {"pass@1": 0.125}
    made["brief_rl"] = write(run, "brief_rl", "evaluate", {"policy": "rl"}, brief)
    best = {"maj@2": 0.5, "pass@1": 0.25, "pass@2": 0.75, "best@2/x": 0.6, "weighted@2/x": 0.7}
    made["chosen"] = write(run, "chosen", "rerank", {}, best, sizes=[1, 2], scorers={"x": {}})
    ends = {"rl": "eval_rl", "base": "eval_base"}
    area = {"hypervolume": 7.25, "hypervolume/all of it": 3.5}
    for policy in ends:
        area |= {f"first/{policy}": 0.5, f"second/{policy}": 12.0}
        area[f"on_front/{policy}"] = float(policy == "rl" or seed)
    made["front"] = write(run, "front", "pareto", ends, area, objectives=["pass@1", "-length"])
    return made


@pytest.fixture
def tabulate(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        stages = stages_of(tmp_path / f"toy-{seed}", seed)
        record = {"order": [*stages, "not_yet"], "stages": stages}
        (tmp_path / f"toy-{seed}" / "run.json").write_text(json.dumps(record))

    def tabulate(pattern, *words) -> list[str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / pattern), *words])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return tabulate


def test_policies_over_seeds(tabulate):
    # The standard error of two numbers is half their difference.
    head, _, *rows = tabulate("toy-[0-9]", "pass@1", "brief:pass@1", "pair_accuracy", "length")
    assert head == "|  | pass@1 | brief:pass@1 | pair_accuracy | length |"
    assert rows == [
        "| base | 0.250 ± 0.050 (0.200, 0.300) | - | - | 12.3 ± 0.0 (12.3, 12.3) |",
        "| rl | 0.700 ± 0.200 (0.500, 0.900) | 0.125 ± 0.000 (0.125, 0.125) | - "
        "| 12.3 ± 0.0 (12.3, 12.3) |",
        "| dpo | 0.400 ± 0.000 (0.400, 0.400) | - | - | 12.3 ± 0.0 (12.3, 12.3) |",
        "| judge | - | - | 0.750 ± 0.000 (0.750, 0.750) | - |",
    ]


def test_what_training_took(tabulate):
    # RL: three steps of 2 s; 300 tokens of 30 samples, and 15 more were drawn. DPO: three of 1 s,
    # on pairs (0.5 s) of three samples with 30 tokens in two batches of 3 s.
    words = ("--rows", "rl,d*", "seconds", "tokens", "samples", "data_seconds")
    _, _, *rows = tabulate("toy-0", *words)
    assert rows == ["| rl | 6.0 | 0.5k | 45 | - |", "| dpo | 3.0 | 0.0k | 3 | 6.5 |"]


def test_choices_and_front(tabulate):
    _, _, *rows = tabulate("toy-0", "--choices", "chosen")
    names = ("nothing (pass@1)", "majority", "x, best", "x, weighted vote",
             "any that is right (pass@k)")  # fmt: skip
    numbers = ("0.250", "0.500", "0.600", "0.700", "0.750")
    assert rows == [f"| {name} | {n} |" for name, n in zip(names, numbers, strict=True)]
    _, _, base, rl, _, _, _, both, one = tabulate("toy-[0-9]", "--front", "front")
    assert base.endswith("| 12.0 ± 0.0 (12.0, 12.0) | 1 of 2 |") and rl.endswith("| 2 of 2 |")
    assert both == "| all | 7.2 ± 0.0 (7.2, 7.2) |" and one.startswith("| all of it | 3.5")
