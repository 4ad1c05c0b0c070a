"""Programs that mean harm, at every tier that this machine offers."""

import os
import socket
import textwrap
import time

import pytest

from posttrain_jax.verifiers.jail import Limits

TRY = """
def f(code):
    space = {}
    try:
        exec(code, space)
    except BaseException as error:
        return type(error).__name__
    return "done"
"""
# Needs no files, so the same at every tier.
REFUSED = [
    "import os; os.fork()",
    "import os; os.forkpty()",
    "import subprocess; subprocess.run(['true'])",
    "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "import os; os.execv('/bin/true', ['true'])",
    "import multiprocessing; p = multiprocessing.Process(target=int); p.start()",
    "import os; os.kill(os.getppid(), 9)",
    "import os; os.kill(-1, 9)",
    "import os; os.kill(0, 9)",
    "import os; os.killpg(0, 9)",
    "import socket; socket.socket()",
    "import socket; socket.socket(socket.AF_UNIX)",
    "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "import socket; a, b = socket.socketpair(); a.connect('/run/x')",
    "import socket, array; a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0])",
    "import os; os.setsid()",
    "import os; os.sched_setaffinity(0, {0})",
    "import os; os.nice(-1)",
    "import os; os.setuid(0)",
    "import os; os.setgroups([0])",
    "import os; os.chroot('/')",
    "import os; os.unshare(0x10000000)" if hasattr(os, "unshare") else "raise OSError",
    "import os; os.memfd_create('x')",
    "import os; os.pidfd_open(os.getpid())",
    "import os; os.chmod('.', 0o777)",
    "import os; os.chown('.', 0, 0)",
    "import os; os.symlink('/etc/passwd', 'x')",
    "import os; os.link('/etc/passwd', 'x')",
    "import os; os.mkfifo('x')",
    "import os; os.mknod('x')",
    "import os; os.utime('/')",
    "import os; os.truncate('/etc/passwd', 0)",
    "import os; os.setxattr('.', 'user.x', b'x')",
    "import os; os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))",
    "import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "import os; os.open('/', os.O_TMPFILE | os.O_RDWR)",
    "open('/dev/mem')",
    "open('/tmp/x', 'w')",
    "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, 1)",
]
# What landlock adds.
HIDDEN = [
    "import posttrain_jax.api",
    "open('/etc/shadow')",
    "open('/etc/passwd')",
    "open('/proc/self/environ')",
    "open('/proc/self/mem', 'rb')",
    "open('/proc/1/cmdline')",
    "import os; os.listdir('/')",
    "import os; os.listdir('..')",
    "import os; os.listdir('/proc')",
    "open('/sys/kernel/mm/transparent_hugepage/enabled')",
    "open('/dev/tty')",
    "open('/dev/shm/x', 'w')",
    "open('../1/x', 'w')",
    "import os; os.rename('/etc/hostname', 'x')",
    "import os; os.unlink('/etc/hostname')",
    "import os; os.mkdir('/tmp/x')",
]


def call(jail, program, *codes, **limits):
    calls = [{"fn": "f", "args": [code]} for code in codes]
    job = {"mode": "call", "program": textwrap.dedent(program), "calls": calls}
    return jail.run(job, Limits(**limits))


def test_calls_that_reach_outside_are_refused(any_jail):
    outcome = call(any_jail, TRY, *REFUSED)
    assert outcome.status == "ok", outcome
    said = {code: result.value for code, result in zip(REFUSED, outcome.results, strict=True)}
    assert {code for code, value in said.items() if value == "done"} == set()


def test_files_are_out_of_reach(any_jail):
    if any_jail.start().level < 2:
        pytest.skip("without landlock what this user may read can be read")
    outcome = call(any_jail, TRY, *HIDDEN)
    said = {code: result.value for code, result in zip(HIDDEN, outcome.results, strict=True)}
    assert {code for code, value in said.items() if value == "done"} == set()


def test_a_file_of_the_trusted_side_cannot_be_read(any_jail, tmp_path):
    if any_jail.start().level < 2:
        pytest.skip("without landlock what this user may read can be read")
    secret = tmp_path / "expected.json"
    secret.write_text("271828")
    secret.chmod(0o644)
    for path in (secret, __file__, f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem"):
        assert call(any_jail, TRY, f"open({str(path)!r}, 'rb').read(1)").results[0].value != "done"


ENDINGS = {
    "cpu": ("while True: pass", {"timeout"}),
    "cpu in C": ("10 ** 10 ** 8", {"timeout"}),
    "cpu in threads": (
        "import threading\nfor _ in range(4):\n"
        "    threading.Thread(target=lambda: sum(range(10**12)), daemon=True).start()\n"
        "while True: pass",
        {"timeout"},
    ),
    "sleep": ("import time; time.sleep(100)", {"timeout"}),
    "stop": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", {"timeout"}),
    "regex": ("import re; re.match('(a+)+$', 'a' * 40 + 'b')", {"timeout"}),
    "memory": ("x = bytearray(10**10)", {"memory"}),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(10**6))", {"memory", "died"}),
    "threads": (
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(99,)).start()",
        {"ok", "timeout", "memory"},
    ),
    "recursion": (
        "import sys; sys.setrecursionlimit(10**9)\nclass A:\n    def __getattr__(self, n):\n"
        "        return getattr(self, n + 'a')\nA().x",
        {"ok", "died", "memory", "timeout"},  # Python 3.12 notices in time
    ),
    "segfault": ("import ctypes; ctypes.string_at(0)", {"died"}),
    "exit": ("import os; os._exit(0)", {"died"}),
    "exit as ours does": ("import os; os._exit(70)", {"died"}),
    "kill itself": ("import os; os.kill(os.getpid(), 9)", {"died"}),
    "system call of i386": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
        {"died"},
    ),
    "flood of frames": (
        "import os\nwhile True: os.write(3, b'\\0\\0\\0\\2[]')",
        {"died", "output"},
    ),
    "a frame of 4 GB": ("import os; os.write(3, b'\\xff' * 4)", {"died"}),
    "no JSON": ("import os; os.write(3, b'\\0\\0\\0\\1{')", {"died"}),
    "writes everywhere": (
        "import os\nfor fd in range(300):\n    try: os.write(fd, b'{\"id\": 1}\\n' * 9)\n"
        "    except OSError: pass",
        {"died", "output"},
    ),
    "closes everything": ("import os; os.closerange(0, 99)", {"died"}),
    "reads everywhere": (
        "import os\nfor fd in range(300):\n    try: os.read(fd, 9)\n    except OSError: pass\n"
        "os._exit(3)",
        {"died"},
    ),
    "patches the interpreter": (
        "import builtins, json, os\nos.write = os._exit = json.dumps = None\n"
        "for n in list(vars(builtins)):\n    setattr(builtins, n, None)",
        {"ok", "died"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_is_told_and_costs_no_more_than_its_limits(jail, name):
    code, statuses = ENDINGS[name]
    program = "def f(x):\n" + textwrap.indent(code, "    ")
    cpu_s = 2.0 if name.startswith("memory") else 0.3  # to fill 256 MB takes time
    outcome = call(jail, program, 1, cpu_s=cpu_s, wall_s=cpu_s + 0.7, mem_mb=256)
    assert outcome.status in statuses, outcome
    assert outcome.status != "infra_error"
    # the next job finds everything as it was
    assert call(jail, "def f(x):\n    return x", 7).results[0].value == 7


def test_results_before_a_death_are_kept(jail):
    program = "import os\ndef f(x):\n    return x if x < 3 else os._exit(0)\n"
    outcome = call(jail, program, 1, 2, 3, 4)
    assert outcome.status == "died" and [r.value for r in outcome.results] == [1, 2]


def test_large_results_exceed_the_cap(jail):
    assert call(jail, "def f(x):\n    return 'a' * x", 10**6).status == "output"
    assert call(jail, "def f(x):\n    return 'a' * x", 200_000).status == "ok"
    job = {"mode": "stdio", "program": "while True: print('y' * 99)", "inputs": ["", ""]}
    outcome = jail.run(job)
    assert outcome.status == "output" and len(outcome.results) == 1


def test_odd_programs_are_a_fault_of_the_program(jail):
    for program in (
        "\ud800",
        "\0",
        "(" * 10**5,
        "-" * 10**5 + "1",
        "x" * 10**6,
        "# coding: x\nf=1",
    ):
        outcome = call(jail, program, 1)
        assert outcome.status in ("ok", "died", "memory"), outcome
        assert all(result.error for result in outcome.results)


def test_a_thread_left_behind_ends_with_its_process(jail):
    program = """
        import os, threading, time
        def beat():
            while True:
                open("beat", "w").write("x")
                time.sleep(0.01)
        def f(x):
            threading.Thread(target=beat).start()
            time.sleep(0.05)
            return os.path.exists("beat")
    """
    assert call(jail, program, 1).results[0].value is True
    time.sleep(0.1)
    look = "import os\ndef f(x):\n    return os.listdir('.')"
    assert call(jail, look, 1).results[0].value == []


def test_files_are_limited_and_gone_afterwards(any_jail):
    if any_jail.start().level < 2:
        pytest.skip("no files without landlock")
    large = "def f(x):\n    open('a', 'w').write('x' * (1 << 21))"
    assert "OSError" in (call(any_jail, large, 1).results[0].error or "")
    many = (
        "def f(x):\n    n = 0\n    while True:\n        open(str(n), 'w').close()\n        n += 1"
    )
    outcome = call(any_jail, many, 1, cpu_s=3)
    assert outcome.status == "output" or "No space" in (outcome.results[0].error or "")
    look = "import os\ndef f(x):\n    return os.listdir('.')"
    assert call(any_jail, look, 1).results[0].value == []


def test_the_network_of_the_host_is_not_there(jail):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        assert call(jail, TRY, code).results[0].value != "done"


def test_nothing_of_an_earlier_job_is_in_memory(jail):
    """The zygote never reads a job, so no later guest inherits its text."""
    secret = "expected-" + "271828"
    test = f"def check(f):\n    assert f(1) == {secret!r}\n"
    job = {"mode": "check", "program": "def f(x): pass", "test": test, "entry_point": "f"}
    jail.run(job)
    program = """
        import gc
        def f(parts):
            wanted = "-".join(parts)
            return [1 for o in gc.get_objects() if type(o) in (list, tuple, dict)
                    and any(type(v) is str and v != wanted and wanted in v for v in
                            (o.values() if type(o) is dict else o))]
    """
    assert call(jail, program, ["expected", "271828"]).results[0].value == []
