"""Watch mode: a change of the files is applied when it has been made, a broken one is told and changes nothing."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from time import monotonic

from poolctl.cli.outcome import Failure, Outcome, outcome_of
from poolctl.cli.pool_ref import Place
from poolctl.cli.remote import ask
from poolctl.cli.request import Request
from poolctl.cli.watch_set import Sources
from poolctl.control.client import Client
from poolctl.errors import ControlError
from poolctl.exit_codes import FAILED
from poolctl.logs.inotify import Watch

# An editor, a checkout or a deployment writes many files: they are one change when nothing more comes for so long.
QUIET_SECONDS = 0.15
# And one that never ends is looked at all the same.
LONGEST_SECONDS = 3.0
# Of these a change of code makes new processes; the others meet it when they start.
_ALIVE = ("running", "starting", "backoff", "draining", "failed")

Tell = Callable[[str, Outcome], None]


class Watcher:
    """Applies what changes to the running pool; `tell` hears the verb and the outcome of each time."""

    def __init__(self, request: Request, place: Place, tell: Tell) -> None:
        """Begin to watch. Failure where that is not possible, NoSupervisor without one."""
        self._request = request
        self._place = place
        self._tell = tell
        self._files = [str(file) for file in Client(place.socket).ping().get("files") or place.files]
        try:
            self._watch = Watch(departures=True)
        except (OSError, AttributeError) as error:
            hint = "watching needs inotify(7), which Linux has"
            raise Failure(Outcome.failed(FAILED, f"cannot watch: {error}", hint)) from None
        self._sources = Sources(self._files, ())
        self._look_around()

    def run(self, over: Callable[[], bool] = lambda: False) -> None:
        """Apply what changes until the pool's supervisor goes away, or `over` is true when something changes."""
        poll = select.poll()
        poll.register(self._watch.fd, select.POLLIN)
        while True:
            poll.poll()
            paths = self._settled(poll)
            if over() or not os.path.exists(self._place.socket):
                return
            self._apply(paths)

    def apply_now(self) -> None:
        """Reload whatever has changed."""
        self._reload()

    def _settled(self, poll: select.poll) -> set[str] | None:
        """The paths that have changed, when no more do; None for too many to tell."""
        deadline = monotonic() + LONGEST_SECONDS
        found: set[str] | None = set()
        while True:
            more = self._watch.changed()
            found = None if more is None or found is None else found | more
            if not poll.poll(QUIET_SECONDS * 1000) or monotonic() > deadline:
                return found

    def _apply(self, paths: set[str] | None) -> None:
        replaced: set[str] = set()
        if self._sources.configuration_changed():
            replaced = self._reload()
        if paths is None:
            names = [name for names in self._sources.app_dirs.values() for name in names]
        else:
            names = self._sources.changed_servers(paths)
        names = [name for name in names if name not in replaced]
        if names:
            self._restart(names)
        if replaced or names or any(os.path.isdir(path) for path in paths or ()):
            self._look_around()

    def _reload(self) -> set[str]:
        """The servers that have new processes by it."""
        outcome = self._ask("reload", {"dry_run": False})
        self._tell("reload", outcome)
        self._look_around()
        changes = outcome.extra.get("changes") or ()
        return {str(each["name"]) for each in changes if each.get("change") in ("add", "restart")}

    def _restart(self, names: list[str]) -> None:
        """Replace those of the servers that run."""
        listed = self._ask("list", {}, names)
        running = [str(item["name"]) for item in listed.items if item.get("state") in _ALIVE]
        if running:
            self._tell("restart", self._ask("restart", {"wait": True}, running))

    def _look_around(self) -> None:
        """Watch what the pool is made of now."""
        self._sources = Sources(self._files, self._ask("show", {}).items, self._sources)
        for directory in dict.fromkeys([*self._sources.directories(), self._place.directory]):
            try:
                self._watch.add(directory)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    hint = "more of them: sysctl fs.inotify.max_user_watches=524288"
                    message = f"too many directories to watch: {directory} and what follows"
                    raise Failure(Outcome.failed(FAILED, message, hint)) from None

    def _ask(self, verb: str, options: dict[str, object], names: list[str] | None = None) -> Outcome:
        """What the supervisor answers; that it could not is an outcome, too."""
        values = {key: self._request.get(key) for key in ("quiet", "verbose", "timeout", "no_wait")}
        if verb == "reload":
            values["env"] = self._request.get("env")
        try:
            return ask(Request(verb, {**values, "targets": names or []}), self._place, more=options)
        except ControlError as failure:
            return outcome_of(failure) or Outcome(exit_code=failure.exit_code)
