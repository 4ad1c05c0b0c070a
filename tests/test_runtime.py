"""When the process restarts itself with the faster allocator, and when it must not."""

import platform

import pytest

from posttrain_jax import runtime


@pytest.fixture(autouse=True)
def linux_cpu(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(runtime, "has_accelerator", lambda: False)


def test_the_tunable_is_added_once_and_keeps_the_others():
    tuned = runtime.tuned_environment({"HOME": "/h"})
    assert tuned == {"HOME": "/h", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert runtime.tuned_environment(tuned) is None
    more = runtime.tuned_environment({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert more == {"GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    "environment",
    [{"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, {"LD_PRELOAD": "/lib/libtcmalloc.so.4"}],
)
def test_a_choice_of_the_user_stands(environment):
    assert runtime.tuned_environment(environment) is None


def test_nothing_happens_with_an_accelerator_or_without_glibc(monkeypatch):
    monkeypatch.setattr(runtime, "has_accelerator", lambda: True)
    assert runtime.tuned_environment({}) is None
    assert runtime.tuned_environment({"JAX_PLATFORMS": "cpu"}) is not None
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert runtime.tuned_environment({"JAX_PLATFORMS": "cpu"}) is None


def test_accelerators_are_seen_by_their_device_files(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert not runtime.has_accelerator(tmp_path)
    (tmp_path / "accel0").touch()
    assert runtime.has_accelerator(tmp_path)


def test_the_doctor_says_where_huge_pages_are_off(tmp_path, monkeypatch):
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr(runtime, "HUGE_PAGES", setting)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert "no effect" in runtime.allocator_state()
    setting.write_text("always [madvise] never\n")
    assert runtime.allocator_state() == "glibc with glibc.malloc.hugetlb=1"
