"""The daemon as its verbs and observers see it: what identifies it, and how it ends."""

from __future__ import annotations

from typing import Protocol

from poolctl.control.answers import About


class Daemon(Protocol):
    """The processes of one pool: supervisor and keeper."""

    def identity(self) -> About:
        """The pool's name and files, the versions and the pids: the answer to a ping, and part of `status`."""
        ...

    def shut_down(self) -> int:
        """End the supervisor after the answer under way; the pid of the keeper, which ends after it."""
        ...

    def hand_over(self, keeper: list[str], supervisor: list[str]) -> None:
        """Let another version take over after the answer under way: the commands of its keeper and supervisor."""
        ...
