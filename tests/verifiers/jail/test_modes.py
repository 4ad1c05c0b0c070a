"""Every mode, with programs that mean well."""

import textwrap

import pytest

from posttrain_jax.verifiers.jail import Limits, Result

PROGRAM = """
from dataclasses import dataclass

@dataclass
class Point:
    x: int

def double(x, times=2):
    print("noise")
    return x * times

def fail():
    raise KeyError("gone")

if __name__ == "__main__":
    raise SystemExit(1)
"""


def stdio(jail, program, *inputs, **limits):
    job = {"mode": "stdio", "program": textwrap.dedent(program), "inputs": list(inputs)}
    return jail.run(job, Limits(**limits))


def test_call_returns_values_of_each_call(jail):
    calls = [
        {"fn": "double", "args": [3]},
        {"fn": "double", "args": [(1, {2})], "kwargs": {"times": 1}},
        {"fn": "fail", "args": []},
        {"fn": "nothing", "args": []},
        {"fn": "Point", "args": [1]},
        {"fn": "double", "args": ["é\0"]},
    ]
    outcome = jail.run({"mode": "call", "program": PROGRAM, "calls": calls})
    assert outcome.status == "ok"
    assert [result.value for result in outcome.results] == [
        6, (1, {2}), None, None, None, "é\0é\0",
    ]  # fmt: skip
    names = [(result.error or "").partition(":")[0] for result in outcome.results]
    assert names == ["", "", "KeyError", "NameError", "Opaque", ""]


def test_call_finds_methods_of_a_solution_class(jail):
    program = "class Solution:\n    def add(self, a, b):\n        return a + b\n"
    calls = [{"fn": "add", "args": [1, 2]}, {"fn": "Solution.add", "args": [None, "a", "b"]}]
    assert jail.run({"mode": "call", "program": program, "calls": calls}).results == [
        Result(3),
        Result("ab"),
    ]


def test_every_call_is_told_why_the_program_does_not_load(jail):
    calls = [{"fn": "f", "args": []}] * 2
    for program, error in (("def f(:", "SyntaxError"), ("1/0", "ZeroDivisionError")):
        outcome = jail.run({"mode": "call", "program": program, "calls": calls})
        assert outcome.status == "ok" and len(outcome.results) == 2
        assert all((result.error or "").startswith(error) for result in outcome.results)


def test_eval_sees_the_names_of_the_program(jail):
    expressions = ["double(2) + 1", "Point(3).x", "[", "fail()"]
    outcome = jail.run({"mode": "eval", "program": PROGRAM, "expressions": expressions})
    assert [result.value for result in outcome.results] == [5, 3, None, None]
    assert [bool(result.error) for result in outcome.results] == [False, False, True, True]


def test_files_lie_in_the_working_folder(any_jail):
    program = "from lib.part import N\ndef f():\n    return N, open('data/in.txt').read()\n"
    files = {"lib/part.py": "N = 5\n", "data/in.txt": "é"}
    calls = [{"fn": "f", "args": []}]
    job = {"mode": "call", "program": program, "files": files, "calls": calls}
    assert any_jail.run(job).results == [Result((5, "é"))]


@pytest.mark.parametrize(
    "program",
    [
        "n = int(input())\nprint(n * 2)",
        "import sys\nfor line in sys.stdin: print(int(line) * 2)",
        "import sys\nsys.stdout.write(str(int(sys.stdin.buffer.read()) * 2))",
        "print(int(open(0).read()) * 2, end='')",
        "import os\nos.write(1, str(int(os.read(0, 100)) * 2).encode())",
        "print(int(input()) * 2)\nexit()",
        "import sys\nprint(int(input()) * 2)\nsys.exit(0)",
        "import os\nprint(int(input()) * 2, flush=True)\nos._exit(0)",
        "def main():\n    print(int(input()) * 2)\nif __name__ == '__main__':\n    main()",
        "import threading\nt = threading.Thread(target=lambda: print(int(input()) * 2))\nt.start()",
        "import atexit\natexit.register(lambda: print(n * 2))\nn = int(input())",
        "out = open(1, 'w')\nout.write(str(int(input()) * 2))",
        "import io, os, sys\nsys.stdout = io.StringIO()\nprint(int(input()) * 2)\n"
        "os.write(1, sys.stdout.getvalue().encode())",
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 2 + f(n - 1)\n"
        "f(50_000)\nprint(f(int(input())))",
        "import sys, threading, resource as r\nr.setrlimit(r.RLIMIT_STACK, (1 << 29,) * 2)\n"
        "threading.stack_size(1 << 26)\nsys.setrecursionlimit(10**6)\n"
        "t = threading.Thread(target=lambda: print(int(input()) * 2))\nt.start()\nt.join()",
        "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n"
        "    print(int(input()) * 2)\n"
        "asyncio.run(main())",
        "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n"
        "    f.write(input())\n    f.seek(0)\n    print(int(f.read()) * 2)",
        "from concurrent.futures import ThreadPoolExecutor as T\nwith T(4) as t:\n"
        "    print(sum(t.map(int, [input()] * 2)))",
    ],
)
def test_stdio_runs_honest_programs_as_python_does(jail, program):
    outcome = stdio(jail, program, "21\n", "4")
    assert outcome.status == "ok", outcome
    assert [r.error for r in outcome.results] == [None, None]
    assert [r.value.strip() for r in outcome.results] == ["42", "8"]


def test_stdio_starts_anew_for_each_input(jail):
    program = """
        import builtins, math, os, random
        print(input(), getattr(builtins, "seen", 0), hasattr(math, "seen"), random.random(),
              os.listdir("."), os.environ.get("SEEN"))
        builtins.seen = math.seen = 1
        os.environ["SEEN"] = "1"
        open("seen", "w").close()
    """
    outcome = stdio(jail, program, "a", "a", "a")
    assert len({result.value for result in outcome.results}) == 1
    assert outcome.results[0].value.startswith("a 0 False")


def test_stdio_tells_how_a_program_ended(jail):
    program = """
        import os, sys
        print("before", flush=True)
        exec(input())
    """
    inputs = ["1/0", "sys.exit(3)", "os.abort()", "sys.exit('why')", "os._exit(5)", "pass"]
    outcome = stdio(jail, program, *inputs)
    assert outcome.status == "ok"
    assert {result.value for result in outcome.results} == {"before\n"}
    assert [result.error for result in outcome.results] == [
        "ZeroDivisionError: division by zero", "ExitCode: exit code 3", "Died: signal SIGABRT",
        "ExitCode: exit code 1", "ExitCode: exit code 5", None,
    ]  # fmt: skip


def test_the_environment_is_fixed(jail):
    code = "dict(__import__('os').environ)"
    program = "import sys, os, time"
    job = {"mode": "eval", "program": program, "expressions": [code, "sys.argv", "time.tzname"]}
    environment, argv, zone = (result.value for result in jail.run(job).results)
    assert {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}.items() <= environment.items()
    assert not {"PATH", "HOME", "USER", "PYTHONPATH"} & environment.keys()
    assert argv == ["program.py"] and zone == ("UTC", "UTC")


def test_function_runs_ours_and_may_import_this_package(jail):
    target = "posttrain_jax.verifiers.jail.values:encode"
    job = {"mode": "function", "target": target, "args": [[1, 2.5]]}
    assert jail.run(job).results == [Result(["l", ["i", "1"], ["f", "2.5"]])]
    job = {"mode": "function", "target": "importlib:import_module", "args": ["posttrain_jax.api"]}
    assert (jail.run(job).results[0].error or "").startswith("Opaque")
    absent = jail.run({"mode": "function", "target": "no.such:f", "args": []})
    assert absent.status == "infra_error"


def test_a_job_that_is_wrong_raises(jail):
    call = {"mode": "call", "program": "", "calls": []}
    for job, kind, message in (
        ({"mode": "walk"}, ValueError, "mode 'walk'"),
        ({"mode": "call", "program": ""}, KeyError, "calls"),
        ({**call, "program": b""}, TypeError, "'program' is a bytes"),
        ({**call, "extra": 1}, ValueError, "extra"),
        ({**call, "files": {"../x": ""}}, ValueError, "../x"),
        ({**call, "calls": [{"fn": "f", "args": [object()]}]}, TypeError, "no plain form"),
    ):
        with pytest.raises(kind, match=message):
            jail.run(job)
    with pytest.raises(ValueError, match="cpu_s"):
        jail.run(call, Limits(cpu_s=0))
