"""The end of a pool is bounded: by what its supervisor says that it may take, and by a limit of the keeper's own."""

from __future__ import annotations

from pathlib import Path

from poolctl.keeper.fd_store import Store
from poolctl.keeper.keeper_exit import ALONE_SECONDS, ANSWER_SECONDS, STOP_SECONDS, Shutdown
from poolctl.keeper.reap import Reaper

NOBODY = 2**22 + 1  # no pid is as high


def shutdown(directory: Path) -> Shutdown:
    store = Store()
    store.put("worker:web.1.0", {"pid": NOBODY}, [])
    return Shutdown(store, Reaper(), str(directory))


def test_supervisor_that_does_not_confirm_a_shutdown_is_not_waited_for(tmp_path: Path) -> None:
    end = shutdown(tmp_path)
    assert not end.check(1e9, 0)
    end.begin(100.0)
    assert not end.check(100.0 + ANSWER_SECONDS - 1, 0)
    assert not end.alone
    assert not end.check(100.0 + ANSWER_SECONDS, 0)
    assert end.alone
    assert end.due == 100.0 + ANSWER_SECONDS + ALONE_SECONDS
    assert end.check(100.0 + ANSWER_SECONDS, 0), "nobody is there"


def test_supervisor_that_confirms_a_shutdown_gets_the_time_of_its_servers(tmp_path: Path) -> None:
    for said, limit in ((0.0, STOP_SECONDS), (1.0, STOP_SECONDS), (90.0, 90.0)):
        end = shutdown(tmp_path)
        end.begin(100.0)
        end.answered(said)
        assert not end.check(100.0 + ANSWER_SECONDS + limit - 1, 0)
        assert not end.alone
        end.answered(said)  # a successor of the first, which has died at it
        end.check(100.0 + ANSWER_SECONDS + limit, 0)
        assert end.alone
