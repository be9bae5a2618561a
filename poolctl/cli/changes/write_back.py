"""--save: a live change that the files say too. Checked before anything is done, written when it has been."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Failure, Outcome, error
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.render import from_here
from poolctl.config import Configuration, Draft, FileChanged
from poolctl.control.answers import About
from poolctl.control.client import Client, NoSupervisor
from poolctl.errors import PoolValidateError
from poolctl.exit_codes import (
    CONFLICT,
    DONE,
    FAILED,
    INVALID_CONFIGURATION,
    NOT_AS_DESIRED,
    NOT_PERMITTED,
    TIMED_OUT,
)

# A change that has been made, if not for every server, or not in time, is worth keeping.
MADE = (DONE, FAILED, TIMED_OUT)

# So many other commands at most may come between.
ATTEMPTS = 20


class WriteBack:
    """The files of a pool, what they say, and what they are to say."""

    def __init__(self, pool: PoolRef, request: CommandRequest) -> None:
        """Read them. PoolValidateError for files that cannot be read, Failure (5) for invalid ones."""
        self.pool = pool
        self.request = request
        about = _about(pool)
        self.supervised = about is not None
        files = about.files if about is not None and about.files else pool.files
        self.draft = Draft([*files], os.environ)
        self.warnings: list[str] = []
        self.now = self._loaded()

    def _loaded(self) -> Configuration:
        from poolctl.cli.offline import load

        return load(PoolRef(self.draft.files, self.pool.directory), allow_empty=True)

    def known(self, names: Sequence[str]) -> list[str]:
        """Those of the servers that are in the files; of the others a warning."""
        found = []
        for name in names:
            if self.draft.entry(name) is not None:
                found.append(name)
            else:
                self.warnings.append(
                    f"{name} is not in any file: nothing to write (poolctl add --save writes it)"
                )
        return found

    def scale(self, names: Sequence[str], workers: int) -> None:
        """Give servers a number of workers."""
        servers = {server.name: server for server in self.now}
        for name in self.known(names):
            if name not in servers or servers[name].workers != workers:
                self.draft.scale(name, workers)

    def disable(self, names: Sequence[str], disabled: bool) -> None:
        """Disable servers, or enable them."""
        servers = {server.name: server for server in self.now}
        for name in self.known(names):
            if name not in servers or servers[name].disabled != disabled:
                self.draft.set(name, ("disabled",), disabled)

    def remove(self, names: Sequence[str]) -> None:
        """Take servers out; one that was added live is in no file, and need not be."""
        for name in names:
            if self.draft.entry(name) is not None:
                self.draft.remove(name)

    def check(self) -> Configuration:
        """The changed configuration. Failure with 5 for an invalid result, with 7 for files that are not writable."""
        config = self.draft.check()
        if not len(config) and not self.request.get("allow_empty"):
            from poolctl.cli.offline import no_server

            raise Failure(Outcome(errors=[no_server(self.pool)], exit_code=INVALID_CONFIGURATION))
        for path in self.draft.texts():
            directory = os.path.dirname(os.path.realpath(path))
            if not os.access(directory, os.W_OK):
                hint = f"fix the permissions of {directory}: a file is replaced as a whole"
                raise Failure(Outcome.failed(NOT_PERMITTED, f"{from_here(path)} cannot be written", hint))
        return config

    def finish(self, live: Callable[[], Outcome]) -> Outcome:
        """Check, change what runs, write. A dry run only shows what would be written."""
        self.check()
        if self.request.get("dry_run"):
            return self._shown()
        outcome = live()
        outcome.warnings += self.warnings
        if outcome.exit_code not in MADE:
            return outcome
        return self._written(outcome)

    def _shown(self) -> Outcome:
        difference = self.draft.difference()
        code = NOT_AS_DESIRED if difference else DONE
        return Outcome(
            text=difference, exit_code=code, warnings=self.warnings, extra={"difference": difference}
        )

    def _write(self) -> None:
        """Write the change; concurrent edits by others are kept, and ours is applied to them."""
        for _ in range(ATTEMPTS):
            try:
                self.draft.write()
            except FileChanged:
                self.draft = self.draft.again()
                self.draft.check()
            else:
                return
        self.draft.write()

    def _written(self, outcome: Outcome) -> Outcome:
        try:
            self._write()
        except (FileChanged, PoolValidateError, KeyError) as changed:
            hint = "nothing was written; check the file, then repeat the command"
            message = (
                str(changed) if isinstance(changed, FileChanged) else "the file has been changed meanwhile"
            )
            _fail(outcome, CONFLICT, message, hint)
        except OSError as failure:
            code = NOT_PERMITTED if isinstance(failure, PermissionError) else FAILED
            where = from_here(str(failure.filename or ", ".join(self.draft.texts())))
            _fail(
                outcome,
                code,
                f"cannot write {where}: {failure.strerror}",
                "the live change lasts until the next reload",
            )
        if outcome.errors and not self.supervised:
            outcome.message = ""  # nothing has been done
        saved = outcome.extra["saved"] = self.draft.written
        words = ", ".join(map(from_here, saved))
        line = f"wrote {words}" if saved else "" if outcome.errors else "the files already say so"
        outcome.message = "\n".join(part for part in (outcome.message, line) if part)
        return outcome


def _about(pool: PoolRef) -> About | None:
    """The supervisor's description of itself; None when there is none."""
    try:
        return Client(pool.socket).ping()
    except NoSupervisor:
        return None


def _fail(outcome: Outcome, exit_code: int, message: str, hint: str) -> None:
    outcome.errors.append(error(exit_code, message, hint))
    outcome.exit_code = exit_code
