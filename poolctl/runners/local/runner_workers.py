"""The workers of a local runner."""

from __future__ import annotations

from collections.abc import Collection

from .local_worker import LocalWorker


class RunnerWorkers(dict[str, LocalWorker]):
    """All workers by their ids, and by their addresses: an event of one server looks at no other's workers.

    They come and go by `add` and `remove` only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_key: dict[str, set[LocalWorker]] = {}

    def add(self, worker: LocalWorker) -> None:
        """Add one that was made or adopted."""
        self[worker.placement.id] = worker
        self._by_key.setdefault(worker.server.key, set()).add(worker)

    def remove(self, worker: LocalWorker) -> None:
        """Remove one that has exited; without effect a second time."""
        if self.get(worker.placement.id) is worker:
            del self[worker.placement.id]
        key = worker.server.key
        of_server = self._by_key.get(key, set())
        of_server.discard(worker)
        if not of_server:
            self._by_key.pop(key, None)

    def of(self, key: str) -> Collection[LocalWorker]:
        """The workers of the server with this address."""
        return self._by_key.get(key, ())
