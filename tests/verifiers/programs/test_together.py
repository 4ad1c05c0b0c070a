"""A pass of all inputs in one process must be a pass in as many processes."""

import json

import pytest

from posttrain_jax.verifiers import code
from posttrain_jax.verifiers.jail import Limits, shared
from posttrain_jax.verifiers.programs import together

HONEST = {
    "input": "n = int(input())\nprint(n * 2)",
    "until the end": "import sys\nfor line in sys.stdin: print(int(line) * 2)",
    "bytes": "import sys\nsys.stdout.buffer.write(b'%d' % (int(sys.stdin.buffer.read()) * 2))",
    "open(0)": "print(int(open(0).read()) * 2, end='')",
    "by descriptor": "import os\nos.write(1, str(int(os.read(0, 100)) * 2).encode())",
    "its size": "import os\nprint(int(os.read(0, os.fstat(0).st_size)) * 2)",
    "exit": "print(int(input()) * 2)\nexit()",
    "a thread": "import threading\nt = threading.Thread(target=lambda: print(int(input()) * 2))\n"
    "t.start()",
    "a deep thread": "import sys, threading\nthreading.stack_size(1 << 26)\n"
    "sys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\n"
    "t = threading.Thread(target=lambda: print(2 * f(int(input()))))\nt.start()\nt.join()",
    "at exit": "import atexit\natexit.register(lambda: print(n * 2))\nn = int(input())",
    "a file on 1": "out = open(1, 'w')\nout.write(str(int(input()) * 2))",
    "fast input": "import io, os, sys\ninput = io.BytesIO(os.read(0, 99)).readline\n"
    "sys.stdout = io.StringIO()\nprint(int(input()) * 2)\n"
    "os.write(1, sys.stdout.getvalue().encode())",
    "a submodule": "import xml.dom.minidom, os.path\nprint(int(input()) * 2)",
    "the context": "import decimal\ndecimal.getcontext().prec = 5\n"
    "print(int(decimal.Decimal(input()) * 2))",
    "a class": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    "print(A(int(input())).x * 2)",
    "a random number": "import random\nn = int(input())\nprint(n * 2 + int(random.random() < 0))",
}
APART = {
    "by os": "import os\nprint(int(input()) * 2, flush=True)\nos._exit(0)",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor as T\nwith T(4) as t:\n"
    "    print(sum(t.map(int, [input()] * 2)))",
    "a thread left": "import threading, time\nprint(int(input()) * 2, flush=True)\n"
    "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "a temporary file": "open('a', 'w').write(input())\nprint(int(open('a').read()) * 2)",
    "a module's name": "import math\nmath.tau = int(input())\nprint(math.tau * 2)",
    "a new name": "import sys\nsys.n = int(input())\nprint(sys.n * 2)",
    "the environment": "import os\nos.environ['N'] = input()\nprint(int(os.environ['N']) * 2)",
}
"""Right, but with something that isn't put back: judged apart."""


def example(pairs, **limits):
    cases = [{"input": given, "output": wanted} for given, wanted in pairs]
    bounds = {"cpu_s": 4.0, "wall_s": 40.0, **limits}
    return {"tests": {"type": "stdio", "cases": cases}, "limits": bounds}


def doubled(count=4):
    return [(f"{n * 7}\n", f"{n * 14}\n") for n in range(1, count + 1)]


def run(mode, program, inputs):
    return shared(()).run({"mode": mode, "program": program, "inputs": inputs}, Limits())


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_print_the_same(name):
    inputs = [given for given, _ in doubled()]
    apart, one = run("stdio", HONEST[name], inputs), run("stdio_together", HONEST[name], inputs)
    assert one.status == apart.status == "ok", one
    assert one.results == apart.results
    assert [int(result.value) for result in one.results] == [14, 28, 42, 56]


@pytest.mark.parametrize("name", APART)
def test_what_leaves_something_behind_is_judged_apart(name):
    inputs = [given for given, _ in doubled()]
    assert run("stdio_together", APART[name], inputs).status == "died"
    verdict = code.score(APART[name], example(doubled()), extract=False)
    assert (verdict.score, json.loads(verdict.detail)) == (1.0, {"passed": 4, "of": 4})


STEP = """
import {module}
x = int(input())
kept = {kept}
if x == 14:
    {keep}
print(x * 2 if kept or x == 14 else 0)
"""
STATEFUL = {
    "a built-in name": ("builtins", "hasattr(builtins, 'n')", "builtins.n = 1"),
    "another built-in name": ("builtins", "ascii is repr", "builtins.ascii = repr"),
    "a module's name": ("heapq", "hasattr(heapq, 'n')", "heapq.n = 1"),
    "another value of a module's": ("math", "math.tau == 1", "math.tau = 1"),
    "the environment": ("os", "'N' in os.environ", "os.environ['N'] = '1'"),
    "a file": ("os", "os.path.exists('n')", "open('n', 'w').close()"),
    "the folder": ("os", "os.getcwd().endswith('n')", "os.mkdir('n'); os.chdir('n')"),
    "a thread": (
        "threading, time",
        "threading.active_count() > 1",
        "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    ),
    "the depth of the stack": (
        "sys",
        "sys.getrecursionlimit() > 5000",
        "sys.setrecursionlimit(9000)",
    ),
    "digits": ("sys", "not sys.get_int_max_str_digits()", "sys.set_int_max_str_digits(0)"),
    "the decimal context": (
        "decimal",
        "decimal.getcontext().prec > 50",
        "decimal.getcontext().prec = 60",
    ),
    "the seed": ("random", "random.random() < 0.63 and random.random() > 0.74", "random.seed(5)"),
    "the size of stacks": (
        "threading",
        "threading.stack_size(0) > 0",
        "threading.stack_size(1 << 20)",
    ),
    "the streams": ("sys", "hasattr(sys.stdin, 'n')", "sys.stdin.n = 1"),
    "the collector": ("gc", "not gc.isenabled()", "gc.disable()"),
    "a tracer": ("sys", "sys.getprofile() is not None", "sys.setprofile(lambda *a: None)"),
    "the interpreter's end": (
        "os, struct",
        "False",
        "print(28, flush=True); os.write(3, struct.pack('>I', 10) + b'[\"d\",null]')",
    ),
}


def in_this_order(monkeypatch):
    monkeypatch.setattr(together, "_order", lambda program, tests: [*range(len(tests)), 0])


@pytest.mark.parametrize("name", STATEFUL)
def test_what_an_earlier_input_left_helps_no_later_one(name, monkeypatch):
    """Right on 14, and where 14 came before: even in the one order that would do."""
    in_this_order(monkeypatch)
    module, kept, keep = STATEFUL[name]
    program = STEP.format(module=module, kept=kept, keep=keep)
    tests = example([("14\n", "28\n"), ("7\n", "14\n"), ("21\n", "42\n")])
    verdict = code.score(program, tests, extract=False)
    assert verdict.status == "fail"
    monkeypatch.setattr(together, "FEWEST", 99)
    assert code.score(program, tests, extract=False) == verdict


HIDDEN = """
import sys
kept = next((p for p in sys.path if isinstance(p, list)), None)
if kept is None:
    kept = [14, 28, 42, 56]
    sys.path.append(kept)
print(kept[0])
kept.append(kept.pop(0))
"""


def test_answers_by_number_are_of_no_use_even_where_nobody_sees_them_kept(monkeypatch):
    for number in range(10):
        verdict = code.score(f"{HIDDEN}# {number}", example(doubled()), extract=False)
        assert verdict.status == "fail"
    in_this_order(monkeypatch)
    assert code.score(HIDDEN, example(doubled()), extract=False).status == "pass"


def test_work_kept_from_one_input_to_the_next_saves_no_time():
    """0.3 s of work, kept where nobody looks; three processes have 0.6 s in all."""
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    keep = "import sys\nif None not in sys.path:\n    sys.path.append(None)\n"
    program = keep + "".join(f"    {line}\n" for line in burn.split("\n")) + HONEST["input"]
    tests = example(doubled(3), cpu_s=0.6)
    assert code.score(program, tests, extract=False).status == "timeout"
    wide = example(doubled(3), cpu_s=2.4)
    assert code.score(program, wide, extract=False).status == "pass"


def test_the_order_is_drawn_from_what_is_expected():
    orders = set()
    for wanted in range(200):
        order = together._order("program", [(str(n), str(n + wanted)) for n in range(4)])
        assert sorted(order[:4]) == [0, 1, 2, 3] and len(order) == 5
        orders.add(tuple(order))
    assert len(orders) > 60  # of 96
    assert together._order("p", [("1", "2")] * 3) == together._order("p", [("1", "2")] * 3)


def test_it_takes_one_process_and_only_where_it_may(monkeypatch):
    modes = []
    jail = shared(())
    plain = jail.run
    monkeypatch.setattr(
        jail, "run", lambda job, limits: modes.append(job["mode"]) or plain(job, limits)
    )
    code.score(HONEST["input"], example(doubled(3)), extract=False)
    assert modes == ["stdio_together"]
    code.score(HONEST["input"], example(doubled(2)), extract=False)
    code.score(HONEST["input"], {**example(doubled(3)), "files": {"a": "b"}}, extract=False)
    assert modes[1:] == ["stdio", "stdio"]
    code.score("print(input())", example(doubled(3)), extract=False)
    assert modes[3:] == ["stdio_together", "stdio"]
