"""The running pool as a Python object: the same verbs as the command line, the same errors as the pool's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from poolctl.control.failing import error_of
from poolctl.control.looking import Looking, Result, Timeout
from poolctl.control.pool_exit import await_end
from poolctl.control.server_table import table_of
from poolctl.errors import (
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
)
from poolctl.exit_codes import DONE, NOT_AS_DESIRED

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolctl.config import ServerConfig


class PoolClient(Looking):
    """A running pool, reached through its supervisor. Every method blocks, and may be called from any thread.

    Methods take names or addresses (`*` and `?` are wildcards; none means all) and the selector's other keys
    (`name`, `bind`, `expose`, `tag`, `state`, `health`, `not`, `allow_empty`) in `selector`. They return the
    document that the command prints with `-o json`. `scale`, `drain`, `undrain`, `enable`, `disable` and `remove`
    need a selection or `all=True`, else they raise PoolParamError.
    """

    def start(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Start the selected servers and return when each is ready; PoolStartError with every failure.

        `timeout` is in seconds, or "1m30s", or a timedelta; when it passes, the children of the error have a
        TimeoutError as cause.
        """
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        return self._ask("start", targets, selector, options, on_progress, PoolStartError)

    def stop(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Stop the selected servers; without a selection the supervisor too. PoolStopError with every one."""
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        result = self._ask("stop", targets, selector, options, on_progress, PoolStopError)
        if result.get("ended"):
            # As for the command: what comes next meets nothing of the pool.
            await_end(int(result["keeper_pid"]))
        return result

    def restart(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
        force: bool = False,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Replace the selected servers without refusing a connection; PoolRestartError with every failure.

        A server whose certificate has expired on the disk, while the one in use has not, is restarted with `force`
        only.
        """
        options = {"timeout": timeout, "deps": deps, "wait": wait, "force": force}
        return self._ask("restart", targets, selector, options, on_progress, PoolRestartError)

    def reload(
        self,
        *,
        dry_run: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
        wait: bool = True,
        force: bool = False,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Apply the changed files and return what changed, as `"changes"`; with `dry_run` only say it.

        A dry run's `"exit_code"` is 3 when there is a difference. `env` is the environment to read the files with
        from now on. PoolValidateError with every problem of the files, which then change nothing; a certificate that
        has expired, while the one in use has not, is one without `force`.
        """
        options = {
            "dry_run": dry_run,
            "env": None if env is None else dict(env),
            "timeout": timeout,
            "wait": wait,
            "force": force,
        }
        return self._ask(
            "reload", (), None, options, on_progress, PoolRestartError, accepted=(DONE, NOT_AS_DESIRED)
        )

    def scale(
        self,
        *targets: str | int,
        workers: int | None = None,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        wait: bool = True,
    ) -> Result:
        """Give each selected server so many workers, until a reload; return when they are there.

        The number is `workers`, or the last argument, as on the command line: `scale("web", 4)`.
        """
        names = [target for target in targets if isinstance(target, str)]
        numbers = [target for target in targets if not isinstance(target, str)]
        numbers += [] if workers is None else [workers]
        if len(numbers) != 1:
            raise PoolParamError("scale: how many workers?", hint='scale("web", workers=4)')
        options = {"workers": numbers[0], "timeout": timeout, "wait": wait, "all": all}
        return self._ask("scale", names, selector, options, None, PoolStartError)

    def drain(self, *targets: str, selector: Mapping[str, Any] | None = None, all: bool = False) -> Result:
        """Take the selected servers out of rotation; they go on answering those who ask them directly."""
        return self._ask("drain", targets, selector, {"all": all}, None, PoolStopError)

    def undrain(self, *targets: str, selector: Mapping[str, Any] | None = None, all: bool = False) -> Result:
        """Take drained servers back into rotation."""
        return self._ask("undrain", targets, selector, {"all": all}, None, PoolStartError)

    def enable(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        wait: bool = True,
    ) -> Result:
        """Enable the selected servers and start them, until a reload; PoolStartError with every failure."""
        options = {"timeout": timeout, "wait": wait, "all": all}
        return self._ask("enable", targets, selector, options, None, PoolStartError)

    def disable(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        wait: bool = True,
    ) -> Result:
        """Stop the selected servers and let nothing start them, until a reload."""
        options = {"timeout": timeout, "wait": wait, "all": all}
        return self._ask("disable", targets, selector, options, None, PoolStopError)

    def add(
        self,
        server: Mapping[str, Any] | ServerConfig | None = None,
        *,
        base_dir: str | os.PathLike[str] = ".",
        timeout: Timeout | None = None,
        wait: bool = True,
        **keys: Any,
    ) -> Result:
        """Add a server, until a reload, and return when it is ready.

        Its keys are as in a file, in a mapping or as keyword arguments; relative paths begin in `base_dir`.
        PoolValidateError for an invalid one, ControlError (8) for a name or an address that is taken.
        """
        options = {
            "server": {**table_of(server), **keys},
            "base_dir": os.path.abspath(base_dir),
            "timeout": timeout,
            "wait": wait,
        }
        return self._ask("add", (), None, options, None, PoolStartError)

    def remove(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
    ) -> Result:
        """Stop the selected servers and take them out of the pool, until a reload; return what was removed."""
        options = {"timeout": timeout, "deps": deps, "wait": wait, "all": all}
        return self._ask("remove", targets, selector, options, None, PoolStopError)

    def wait(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        until: str = "ready",
    ) -> Result:
        """Return when the selected servers are `until` (ready, stopped, healthy, or any state)."""
        return self._ask(
            "wait", targets, selector, {"timeout": timeout, "for": until}, None, PoolMonitorError
        )

    def upgrade(self) -> Result:
        """Let this version of poolctl take over the pool, and return when it has; the servers' processes stay.

        Raises ControlError (8) when the running version refuses, PoolValidateError for files with problems.
        """
        from poolctl.control.upgrading import upgrade

        result = upgrade(self._client)
        if result["exit_code"]:
            raise error_of("upgrade", result["exit_code"], result, PoolRestartError)
        return result
