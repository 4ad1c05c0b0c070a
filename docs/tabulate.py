"""Tables over seeds from the `report.json` files of several run folders, as Markdown.

    python docs/tabulate.py "runs/r1-tiny-s*" pass@1 greedy refuse_harmful ...

A row is a policy; a cell is the mean over seeds +- its standard error (sample standard deviation
over seeds / sqrt(seeds)), then each seed's own value.
"""

import json
import math
import sys
from glob import glob
from pathlib import Path


def policies(run: Path) -> dict[str, dict[str, float]]:
    """`{policy: {metric: mean}}` of a run, in pipeline order."""
    stages = json.loads((run / "report.json").read_text())["stages"]
    return {
        stage["name"].removeprefix("eval_"): {k: m["mean"] for k, m in stage["metrics"].items()}
        for stage in stages
        if stage["kind"] == "evaluate"
    }


def cell(values: list[float]) -> str:
    """Mean +- standard error over seeds (each seed)."""
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else 0.0
    return f"{mean:.3f} ± {spread:.3f} ({', '.join(f'{v:.3f}' for v in values)})"


def main(pattern: str, metrics: list[str]) -> None:
    """Print the table of all runs that match."""
    runs = [policies(Path(run)) for run in sorted(glob(pattern))]
    print("| policy | " + " | ".join(metrics) + " |")
    print("|---" * (len(metrics) + 1) + "|")
    for name in runs[0]:
        cells = [
            cell([run[name][metric] for run in runs])
            if all(metric in run[name] for run in runs)
            else "-"
            for metric in metrics
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
