"""A zygote makes the code of its process immortal where that is safe, so that its forks share it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from poolctl.keeper import wire
from poolctl.worker import immortal

SAFE = (
    sys.version_info[:2] in immortal.VERSIONS
    and "t" not in sys.abiflags
    and not hasattr(sys, "gettotalrefcount")
)
only_where_safe = pytest.mark.skipif(not SAFE, reason="another version of Python")

IMMORTAL_COUNT = 1 << 31  # of references, at least, as sys.getrefcount reports them


def run(script: str, *arguments: str, **variables: str) -> str:
    """What a script prints in a process of its own, which the counts of the tests' process do not reach."""
    prelude = (
        "import gc, os, sys, weakref\nfrom poolctl.worker import immortal\n"
        f"def fixed(what): return sys.getrefcount(what) >= {IMMORTAL_COUNT}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + script, *arguments],
        env=os.environ | variables, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_other_versions_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(immortal, "VERSIONS", frozenset())
    assert immortal.make_immortal() is False


@only_where_safe
def test_parts_of_code_become_immortal_and_containers_and_instances_do_not() -> None:
    assert run("""
class Shop:
    sign = "open at " + str(len(sys.argv))
    def sell(self, price=1234567):
        def inner(): return "a constant of nested code", (3.25, b"bytes of a constant")
        return inner
shop, shelves, index = Shop(), [object()], {"a": object()}
nested = Shop.sell.__code__.co_consts[1]
print(immortal.make_immortal())
print([fixed(each) for each in (Shop, Shop.sell, Shop.sell.__code__, nested, Shop.__name__, gc, vars(gc))])
print(all(map(fixed, nested.co_consts)), fixed(Shop.sell.__defaults__), fixed(len), fixed(str.split))
print([fixed(each) for each in (shop, shelves, shelves[0], index, index["a"])])
""") == (
        "True\n"
        "[True, True, True, True, True, True, True]\n"
        "True True True True\n"
        "[False, False, False, False, False]\n"
    )


@only_where_safe
def test_objects_of_immortal_classes_are_freed_finalized_and_collected() -> None:
    assert (
        run("""
class Loud:
    def __del__(self): print("finalized")
held, cycle = Loud(), Loud()
cycle.itself = cycle
seen = weakref.ref(cycle)
immortal.make_immortal()
del held
del cycle
gc.unfreeze()
gc.collect()
print(seen())
late = Loud()
del late
print(gc.isenabled(), gc.get_freeze_count() > 0)
""")
        == "finalized\nfinalized\nNone\nfinalized\nTrue True\n"
    )


@only_where_safe
def test_strings_and_tuples_that_were_immortal_are_copied_not_changed() -> None:
    assert (
        run("""
import io
WORD, PAIR = "immortal word", ("a", "b")
buffer = io.BytesIO(b"bytes of a constant")
def code(): return "immortal word", ("a", "b"), b"bytes of a constant"
immortal.make_immortal()
word, pair = code()[:2]
word += "!" * 1000
pair += ("c",)
buffer.write(b"B"); buffer.seek(0, 2); buffer.write(b"." * 1000)
print(code(), len(word), len(pair), len(buffer.getvalue()), sys.intern("immortal " + "word") == WORD)
""")
        == "('immortal word', ('a', 'b'), b'bytes of a constant') 1013 3 1019 True\n"
    )


@only_where_safe
def test_futures_work_on_in_an_event_loop_that_is_new() -> None:
    # Python 3.12 keeps dead iterators of futures for reuse, and names them to the collector.
    assert (
        run("""
import asyncio

async def later(number):
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(number / 100, future.set_result, number)
    return await future

async def several():
    return await asyncio.gather(*map(later, range(8)))

asyncio.run(several())
print(immortal.make_immortal(), immortal.make_immortal(), asyncio.run(several()))
""")
        == "True True [0, 1, 2, 3, 4, 5, 6, 7]\n"
    )


@pytest.mark.parametrize(
    ("after", "shared"), [("0", [True] * 4), ("2", [False, False, True, True]), ("never", [False] * 4)]
)
@only_where_safe
def test_zygote_makes_its_objects_immortal_after_so_many_forks(after: str, shared: list[bool]) -> None:
    ours, theirs = wire.pair()
    script = """
from poolctl.keeper import wire
from poolctl.worker.zygote import serve_forks

def role(fds):
    os.write(fds[0], b"shared" if fixed(serve_forks) else b"counted")
    os._exit(0)

serve_forks(wire.over(int(sys.argv[1])), {"worker": role})
"""
    prelude = f"import os, sys\ndef fixed(what): return sys.getrefcount(what) >= {IMMORTAL_COUNT}\n"
    zygote = subprocess.Popen(
        [sys.executable, "-c", prelude + script, str(theirs.fileno())],
        pass_fds=[theirs.fileno()], env=os.environ | {immortal.VARIABLE: after}, start_new_session=True,
    )  # fmt: skip
    theirs.close()
    ours.settimeout(30)
    try:
        # All at once: the process that forks for the zygote ends at the limit, with requests left.
        pipes = [os.pipe() for _ in shared]
        for number, (_, write) in enumerate(pipes):
            wire.send(ours, {"op": "worker", "id": number}, [write])
            os.close(write)
        found = []
        for read, _ in pipes:
            with open(read, "rb") as said:
                found.append(said.read() == b"shared")
        assert found == shared
    finally:
        ours.close()
        zygote.kill()
        zygote.wait(10)
