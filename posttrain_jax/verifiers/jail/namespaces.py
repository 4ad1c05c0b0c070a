"""An outer shell for the zygote: own processes, network, IPC and a root of its own.

Made by the zygote itself (`unshare`, `mount`, `pivot_root`), as root or through a user namespace;
not through bwrap. The root is a small file system in memory: the readable paths bound read-only, a
/tmp of limited size, a few devices, and a /proc that shows the jail's own processes only. When the
zygote ends, the kernel ends every process in there, and the file system is gone.
"""

import contextlib
import ctypes
import os
import signal

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_ALL = _NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_BIND, _REC, _PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
_LOCKED = _NOSUID | _NODEV | _NOEXEC  # what a mount has, its copy must keep
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SPACE = "size=64m,nr_inodes=4096,mode=755"
_OLD = "/.old"


def unshare(libc: ctypes.CDLL) -> bool:
    """Leave the host's namespaces; the next fork is the first process of the new ones.

    Returns:
      Whether that took a user namespace.

    Raises:
      OSError: neither as root nor through a user namespace.
    """
    if not libc.unshare(_ALL):
        return False
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_ALL | _NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"),
    ):  # fmt: skip
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def wait_for(pid: int) -> None:
    """What is left for the process outside: end as the one inside does."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (9, 19) else None
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


def _mount(
    libc: ctypes.CDLL, source: str, target: str, kind: str | None, flags: int, data: str = ""
) -> None:
    words = [None if w is None else os.fsencode(w) for w in (source, target, kind, data)]
    if libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


def own_root(libc: ctypes.CDLL, machine: str, paths: list[str]) -> None:
    """Change to a root that has these paths, read-only, at the same places.

    Raises:
      OSError: the kernel refuses; the old root is then still in place.
    """
    devices = (f"/dev/{name}" for name in _DEVICES)
    # parents first; the links of the old root can be followed only now
    places = [(path, os.path.realpath(path)) for path in sorted({*paths, *devices}, key=len)]
    _mount(libc, "none", "/", None, _REC | _PRIVATE)
    _mount(libc, "tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, _SPACE)
    try:
        os.mkdir("/tmp" + _OLD, 0o700)
        os.chdir("/tmp")
        if libc.syscall(_PIVOT_ROOT[machine], b".", os.fsencode(_OLD[1:])):
            number = ctypes.get_errno()
            raise OSError(number, f"pivot_root: {os.strerror(number)}")
    except OSError:
        os.chdir("/")
        libc.umount2(b"/tmp", _DETACH)
        raise
    os.chdir("/")
    for path, source in places:
        _bind(libc, source, path)
    os.makedirs("/tmp", exist_ok=True)  # there already where a path lies in it
    os.chmod("/tmp", 0o711)
    os.makedirs("/proc", exist_ok=True)
    # Refused where the host's /proc is partly hidden, as in a container: done without, then.
    with contextlib.suppress(OSError):
        _mount(libc, "proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    if libc.umount2(os.fsencode(_OLD), _DETACH):
        raise OSError(ctypes.get_errno(), "umount2")
    os.rmdir(_OLD)


def _bind(libc: ctypes.CDLL, source: str, path: str) -> None:
    """Bind a path of the old root read-only at its place in the new one, unless it is there."""
    source = _OLD + source
    if os.path.lexists(path) or not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(path)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "x"):
            pass
    _mount(libc, source, path, None, _BIND | _REC)
    flags = os.statvfs(path).f_flag & _LOCKED
    if not path.startswith("/dev/"):
        flags |= _NODEV
    _mount(libc, "none", path, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | flags)
