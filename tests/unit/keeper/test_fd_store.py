"""The descriptor store keeps what it is given, and closes what it forgets."""

from __future__ import annotations

import os

from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import integers, sampled_from

from poolctl.keeper.fd_store import Store
from tests.examples import examples

NAMES = sampled_from(["control", "wanted", "listener:a", "listener:b", "worker:é.1.0"])


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Stored(RuleBasedStateMachine):
    """The store against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.model: dict[str, tuple[int, list[int]]] = {}
        self.number = 0

    @rule(name=NAMES, count=integers(0, 3))
    def put(self, name: str, count: int) -> None:
        self.number += 1
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        replaced = self.model.get(name, (0, []))[1]
        self.store.put(name, self.number, fds)
        self.model[name] = (self.number, fds)
        assert not any(is_open(fd) for fd in replaced if fd not in fds)

    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        self.store.drop(name)
        _, fds = self.model.pop(name, (0, []))
        assert not any(is_open(fd) for fd in fds)

    @rule(name=NAMES)
    def note(self, name: str) -> None:
        self.number += 1
        self.store.note(name, self.number)
        if name in self.model:
            self.model[name] = (self.number, self.model[name][1])

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        assert self.store.get(name) == self.model.get(name)

    @invariant()
    def everything_kept_is_open(self) -> None:
        assert [name for name, _ in self.store.page("")] == sorted(self.model)
        assert self.store.holds_work == any(":" in name for name in self.model)
        assert all(is_open(fd) for _, fds in self.model.values() for fd in fds)

    def teardown(self) -> None:
        for name in list(self.model):
            self.store.drop(name)


StoredTest = Stored.TestCase
StoredTest.settings = examples(30, stateful_step_count=20)


def test_pages_cover_every_entry_once_and_in_order() -> None:
    store = Store()
    names = [f"listener:{number:04}" for number in range(450)]
    for number, name in enumerate(reversed(names)):
        store.put(name, number, [])
    seen: list[str] = []
    after = ""
    while page := store.page(after):
        seen += [name for name, _ in page]
        after = page[-1][0]
        assert len(page) <= 200
    assert seen == names
