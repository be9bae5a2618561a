"""What workers write to lies on pages of its own, and functions and objects are as before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from poolctl.worker import memory_layout
from poolctl.worker.memory_layout import noting_code, release_zeros

PAGE = memory_layout.mmap.PAGESIZE


def run(script: str) -> str:
    """What a script prints in a process of its own, whose objects are frozen meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gathered_code_takes_fewer_pages() -> None:
    before, after = map(
        int,
        run("""
import mmap
from poolctl.worker.memory_layout import gather_code, noting_code
names = {}
for number in range(4000):
    exec(f"def f{number}(): return {number}", names)
used = [names[f"f{number}"] for number in range(0, 4000, 40)]
def pages(): return len({id(each.__code__) // mmap.PAGESIZE for each in used})
print(pages())
with noting_code() as codes:
    for each in used: each()
gather_code(codes, ())
print(pages())
assert [each() for each in used] == list(range(0, 4000, 40))
""").split(),
    )
    assert after < before / 2


def test_functions_with_gathered_code_do_what_they_did() -> None:
    assert (
        run("""
import asyncio, gc
from poolctl.worker.memory_layout import gather_code, noting_code
def outer(first, /, second=2, *rest, third, **more):
    def inner(): return first + second + third + sum(rest) + sum(more.values())
    return inner
def numbers(): yield from (each * 2 for each in range(3))
async def wait(): await asyncio.sleep(0); return __class_name__
__class_name__ = "waited"
class Shop:
    @property
    def sign(self): return super().__repr__()[:1]
def all_of_them(): return outer(1, third=3, fourth=4)(), [*numbers()], asyncio.run(wait()), Shop().sign
kept = outer(10, third=30)
functions = outer, numbers, wait, Shop.sign.fget, all_of_them
codes_before = [each.__code__ for each in functions]
with noting_code() as codes:
    before = all_of_them()
gather_code(codes, ())
print(all_of_them() == before, kept())
print([each.__code__ == old and each.__code__ is not old for each, old in zip(functions, codes_before)])
print(outer.__code__.co_consts[1] is not codes_before[0].co_consts[1])
""")
        == "True 42\n[True, True, True, True, True]\nTrue\n"
    )


def test_code_is_gathered_by_module_too_and_the_rest_stays() -> None:
    assert run("""
import json, textwrap
from poolctl.worker.memory_layout import gather_code
functions = json.loads, json.dumps, textwrap.dedent
before = [each.__code__ for each in functions]
gather_code({}, {"json"})
print([each.__code__ is old for each, old in zip(functions, before)])
""") == ("[False, False, True]\n")


def test_prefork_run_gathers_the_code_of_the_server_and_of_the_worker_around_it() -> None:
    assert run("""
import json, sys
from poolctl.worker import preload, worker_process
from poolctl.worker.serving.pool_server import PoolServer
functions = PoolServer.run, worker_process.WorkerProcess.run, sys.modules["importlib"].import_module, json.load
before = [each.__code__ for each in functions]
preload.preload()
preload.prefork_run()
print([each.__code__ is old for each, old in zip(functions, before)])
""") == ("[False, False, False, True]\n")


def test_noting_code_restores_the_profiler() -> None:
    def profile(*_: object) -> None: ...

    sys.setprofile(profile)
    try:
        with pytest.raises(ZeroDivisionError), noting_code() as codes:
            run_something()
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    assert run_something.__code__ in codes.values()


def run_something() -> None:
    raise ZeroDivisionError


def pages_in_memory(what: object) -> int:
    """How many pages of an object take memory (proc(5), pagemap)."""
    first, last = id(what) // PAGE, (id(what) + type(what).__basicsize__) // PAGE
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(first * 8)
        return sum(entry >> 63 for entry in memoryview(file.read((last - first) * 8)).cast("Q"))


def test_zeros_of_a_large_object_take_no_memory_and_its_content_stays() -> None:
    names = [f"name{number}" for number in range(16 * 1024)]
    large = type("Large", (), {"__slots__": names})()  # an empty slot holds a zero
    first, last = sorted(names)[0], sorted(names)[-1]
    setattr(large, first, "first")
    setattr(large, last, "last")
    assert pages_in_memory(large) >= 32
    release_zeros(large)
    assert pages_in_memory(large) <= 4
    assert (getattr(large, first), getattr(large, last)) == ("first", "last")
    assert not hasattr(large, sorted(names)[8000])
    setattr(large, sorted(names)[8000], "written")
    assert getattr(large, sorted(names)[8000]) == "written"


def test_small_objects_and_content_between_zeros_are_left_alone() -> None:
    release_zeros(object())
    names = [f"name{number}" for number in range(16 * 1024)]
    large = type("Large", (), {"__slots__": names})()
    setattr(large, sorted(names)[8000], "between")
    before = pages_in_memory(large)
    release_zeros(large)
    assert getattr(large, sorted(names)[8000]) == "between"
    assert pages_in_memory(large) == before
