"""The session of `poolctl run`: starts the servers of a launched pool, waits for its end, and stops it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from time import time
from typing import TYPE_CHECKING

from poolctl.cli import render
from poolctl.cli.offline import no_server_outcome
from poolctl.cli.outcome import Failure, Outcome, error, outcome_of
from poolctl.cli.output import command_annotations, json_without_commands
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, same_name_warning
from poolctl.cli.reload_on_change import PoolWatcher
from poolctl.cli.reload_plan import change_lines
from poolctl.cli.supervisor_requests import (
    Progress,
    Request,
    await_exit_if_pool_ends,
    is_empty,
    startup_failure,
)
from poolctl.control import sd_notify
from poolctl.control.answers import Item, ReloadResult, Result, StatusResult
from poolctl.control.client import (
    AsyncClient,
    Client,
    NoSupervisor,
    SupervisorEnded,
    read_exit,
    wait_for_exit,
)
from poolctl.errors import ControlError, hint_without
from poolctl.exit_codes import DONE, FAILED, INTERRUPTED, READER_GONE
from poolctl.monitor.journal import JournalEvent

from ._end_of_work import has_finished, status_of_servers
from ._failure_report import death_lines, find_logs, last_lines, lines_beside, log_sections
from ._lifeline import Lifeline
from ._loop import in_thread
from ._pool_events import PoolEventFollower
from ._server_output import ServerOutput, own_line
from ._standard_error import StandardError
from ._stop_orders import StopOrdered, StopOrders
from ._user_command import command_environment, run_to_end
from .signals import TERMINATED, status_after

if TYPE_CHECKING:
    from poolctl.json_form import Table
    from poolctl.supervisor.launch import LaunchedKeeper

# Kill the remaining processes this long before the stop timeout.
_KILLING_SECONDS = 1.0
# Maximum wait until messages are written, before the user's command writes its own, and at the end.
_PATIENCE_SECONDS = 0.5
_LAST_SECONDS = 2.0
_ALIVE = ("running", "starting", "backoff", "draining")


class RunSession:
    """One invocation of `poolctl run`. Its pool ends when `keeper.lifeline` is closed, which this object owns.

    `request` is the one to start the servers. `command` is the user's, empty without one, and `path` its program.
    `stop_signals` are blocked. `limit_seconds` limits the time to stop the pool. With `objects`, lines are JSON
    objects. `output` is the form of the result; `watch` applies changed files; `prints_logs` adds the servers' output,
    with `timestamps`. With `abort_on_exit`, the first unexpected exit of a server ends the session. Without
    `keeps_logs`, hints at `poolctl logs` are omitted.
    """

    def __init__(
        self,
        request: Request,
        pool: PoolRef,
        keeper: LaunchedKeeper,
        *,
        command: list[str],
        path: str,
        stop_signals: Sequence[int],
        limit_seconds: float | None,
        objects: bool,
        output: str | None,
        watch: bool,
        prints_logs: bool,
        timestamps: bool,
        abort_on_exit: bool,
        keeps_logs: bool,
    ) -> None:
        self.outcome = Outcome()
        self._request = request
        self._pool = pool
        self._keeper = keeper
        self._command = command
        self._path = path
        self._limit_seconds = limit_seconds
        self._objects = objects
        self._output_form = output
        self._watches = watch
        self._quiet = request.place.quiet
        self._begun = time()
        self._client = AsyncClient(pool.socket)
        # Under a service manager SIGHUP is not the hangup of a terminal, but the order to reload (systemd.service(5)).
        self._orders = StopOrders(stop_signals, self._begin_reload if sd_notify.enabled(os.environ) else None)
        self._stderr = StandardError(sys.stderr)
        self._events = PoolEventFollower(
            pool.socket, self._print_event, brief=bool(command), ends_run=self._end_with
        )
        self._abort_on_exit = abort_on_exit
        self._keeps_logs = keeps_logs
        self._first_end = asyncio.Event()  # the exit of a server that ends the session
        self._status_of_first_end = DONE
        self._output: ServerOutput | None = None
        if prints_logs:
            lost = self._orders.add_lost_reader
            self._output = ServerOutput(pool, lost, times=timestamps, objects=objects)
        self._servers: Sequence[Item] = ()
        self._gateway: Table | None = None
        self._failures: dict[str, str] = {}  # the reasons of the servers that did not start
        self._is_starting = bool(command)
        self._held_events: list[tuple[JournalEvent, str, str]] = []
        self._has_run = False
        self._last_logs: dict[str, str] = {}  # of the servers that explain a failure
        self._is_ending = False
        self._stop_options: dict[str, object] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, noted: Sequence[int], log_start: int) -> Outcome:
        """Start the servers, wait until the pool, the user's command or a signal ends the session, and stop the pool.

        `noted` are signals that have arrived already. The supervisor's log begins at `log_start`.
        """
        command_annotations.of_servers = False
        self._lifeline = Lifeline(self._keeper.lifeline, os.environ)
        for number in noted:
            self._orders.add_signal(number)
        with redirect_stderr(self._stderr):
            code = await self._start_and_wait(log_start)
            self.outcome.exit_code = await self._stop_and_report(code)
            self._flush_diagnostics()
            await self._stderr.await_written(_LAST_SECONDS)
        return self.outcome

    async def _start_and_wait(self, log_start: int) -> int:
        """Start the servers, and wait until the pool, the user's command or an order ends; returns the exit code."""
        try:
            if not await self._orders.unless_ordered(self._start()):
                # Ends the run with the status of a server if the start has failed because that server has ended.
                await self._orders.unless_ordered(asyncio.sleep(0))
                self._flush_diagnostics()
                return self.outcome.exit_code
            if self._watches:
                await self._orders.unless_ordered(self._start_watch())
            if self._command:
                return await self._run_command()
            return await self._orders.unless_ordered(self._announce_and_wait())
        except StopOrdered as order:
            if order.number == signal.SIGCHLD:
                return self._status_of_first_end
            if order.number == signal.SIGTERM and sd_notify.enabled(os.environ):
                self._stop_options = {"unit": True}  # the listeners stay open for the next run
            return status_after(order.number, has_command=bool(self._command))
        except (ControlError, Failure) as failure:
            if isinstance(failure, (NoSupervisor, SupervisorEnded)):
                failure = startup_failure(failure, self._pool, log_start)
            self.outcome = outcome_of(failure) or self.outcome
            return self.outcome.exit_code

    async def _start(self) -> bool:
        """Start the selected servers and set `outcome`; returns whether to continue.

        After a failed start, it continues only if no user's command is given and at least one server is alive.
        """
        request = self._request
        options = {"timeout": request.timeout, **request.options}
        body = {"selector": request.selection.selector().to_dict(), "options": options}
        if self._output is not None:
            self._output.start()
        self._events.start()
        quiet = self._quiet or not self._command  # without a command, the logs show the progress
        with Progress("start", quiet=quiet) as progress:
            result = await self._client.ask(Result, "start", body, progress, request.timeout)
        if result.exit_code and self._abort_on_exit:
            await self._events.catch_up()
            if self._first_end.is_set():  # the start failed because of it
                return False
        self.outcome, self._servers, self._gateway = Outcome.of(result), result.items, result.gateway
        if not self._keeps_logs:
            self.outcome.errors = [
                replace(error, hint=hint_without("poolctl logs ", error.hint)) for error in result.errors
            ]
        self._failures = {error.name: error.message for error in result.errors if error.name}
        self._print_held_events()
        await in_thread(await_exit_if_pool_ends, result)
        self.outcome.warnings += [w for w in progress.warnings if w not in self.outcome.warnings]
        if warning := await in_thread(same_name_warning, self._pool):
            self.outcome.warnings.append(warning)
        if not self.outcome.exit_code:
            if is_empty(result) and not request.selection.allow_empty:
                self.outcome = no_server_outcome(self._pool)
            return not self.outcome.exit_code
        alive = any(item.state in _ALIVE for item in self._servers)
        return alive and self.outcome.exit_code == FAILED and not self._command

    async def _announce_and_wait(self) -> int:
        """Print addresses and problems, and wait until the pool has ended.

        Returns 0 if a command has ended it; 1 if its processes were killed; and if every server has ended by itself,
        what `status_of_servers` says.
        """
        expected = [
            item
            for item in self._servers
            if item.state not in ("disabled", "sleeping") and not render.rests_until_named(item)
        ]
        ready = sum(item.ready for item in expected)
        line = f"{render.server_count_text(ready, len(expected))} ready"
        if not (self._output_form or self._objects):
            for address in render.address_lines(self._servers):
                self._say(address)
        if self._gateway is not None and (serves := render.serves_line(self._gateway)):
            self._say(serves)
        if not self.outcome.exit_code:  # before the next line, at which a user may ask for a reload
            sd_notify.notify(os.environ, sd_notify.READY, sd_notify.status(line))
        self._say(f"{line}, Ctrl-C to stop")
        self._flush_diagnostics()  # failures are printed now, while other servers run
        if (status := await self._await_end()) is not None:
            self._say("every server has ended")
            return status
        if not await in_thread(self._was_killed):
            return DONE
        self._say("the pool's supervisor was killed; poolctl stop ends what it has left", "error")
        return FAILED

    async def _await_end(self) -> int | None:
        """Wait until the pool has ended, or has nothing left to run; then return the status of its servers."""
        lifeline = asyncio.ensure_future(self._lifeline.ended.wait())
        work = asyncio.ensure_future(self._end_of_work())
        try:
            # With --watch a changed file may start a server again.
            await asyncio.wait(
                {lifeline} if self._watches else {lifeline, work}, return_when=asyncio.FIRST_COMPLETED
            )
            return work.result() if work.done() and not lifeline.done() else None
        finally:
            lifeline.cancel()
            work.cancel()
            await asyncio.gather(lifeline, work, return_exceptions=True)

    async def _end_of_work(self) -> int:
        """Wait until the pool has finished; returns the exit status."""
        names = {item.name for item in self._servers}
        while True:
            self._events.changed.clear()
            try:
                now = await self._client.ask(StatusResult, "status")
            except ControlError:  # its successor sends the events again
                await asyncio.sleep(_PATIENCE_SECONDS)
                continue
            items = [item for item in now.items if item.name in names or item.state != "stopped"]
            processes = [process.name for process in now.summary.processes] if now.summary else []
            if has_finished(items, processes):
                await self._events.catch_up()  # their exits may still be on the way
                return status_of_servers(items, self._events.exits)
            await self._events.changed.wait()

    def _was_killed(self) -> bool:
        """Whether the pool was killed: its socket then remains without a listener. Blocks."""
        if not os.path.lexists(self._pool.socket):
            return False
        try:
            Client(self._pool.socket).ping()
        except ControlError:
            return True
        return False

    async def _run_command(self) -> int:
        """Run the user's command; returns its exit code. With -o its output goes to standard error."""
        environment = await self._orders.unless_ordered(self._prepare_command())
        status = await run_to_end(
            self._path,
            self._command,
            environment,
            stdout=self._stderr.fileno() if self._output_form else None,
            pool_ended=self._wait_for_end,
            # The pool has ended by itself.
            unwanted=lambda: self._first_end.is_set() or bool(read_exit(self._pool.directory)),
        )
        return self._status_of_first_end if self._first_end.is_set() else status

    async def _wait_for_end(self) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._lifeline.ended, self._first_end)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _end_with(self, status: int) -> bool:
        """End the session, if it should, because a server has ended with this status without an order."""
        if not self._abort_on_exit or self._is_ending or self._first_end.is_set():
            return False
        # The command, which gets SIGTERM, has not done its work.
        self._status_of_first_end = status or (FAILED if self._command else DONE)
        self._first_end.set()
        if not self._has_run:
            self._orders.add_first_end()
        return True

    async def _prepare_command(self) -> dict[str, str]:
        listed = await self._client.ask(Result, "list")
        environment = command_environment(self._pool, listed.items)
        self._has_run = True
        self._events.died.clear()  # the start has reported its own failures
        await self._stderr.await_written(_PATIENCE_SECONDS)
        return environment

    # Changes while the pool runs.

    async def _start_watch(self) -> None:
        """Begin to apply changes of files. The watch is made in a thread, because directories may be slow."""
        # No progress between the lines of the servers.
        request = replace(self._request, place=Place(quiet=True), options={})
        watcher = await in_thread(PoolWatcher, request, self._pool, self._say, self._begun)
        self._tasks.append(asyncio.create_task(self._apply_changes(watcher)))

    async def _apply_changes(self, watcher: PoolWatcher) -> None:
        results = watcher.apply_changes(lambda: self._is_ending)
        try:
            while (result := await in_thread(next, results, None)) is not None:
                self._print_change(result)
        except Failure as failure:  # further paths cannot be watched; the pool keeps running
            self._explain(failure.outcome)

    def _begin_reload(self) -> None:
        self._tasks.append(asyncio.create_task(self._reload()))

    async def _reload(self) -> None:
        """Apply the changed files, and print the outcome."""
        sd_notify.notify(os.environ, *sd_notify.reloading())
        try:
            result = await self._client.ask(ReloadResult, "reload")
        except ControlError as failure:
            entry = error(failure.exit_code, failure.message, failure.hint)
            result = ReloadResult(errors=(entry,), exit_code=failure.exit_code)
        self._print_change(result)
        sd_notify.notify(os.environ, sd_notify.READY)

    def _print_change(self, result: Result) -> None:
        """Print the outcome of a change of the files, between the servers' output."""
        for line in change_lines(result, None if self._objects else sys.stderr):
            self._say(line)
        self._explain(Outcome.of(result))

    # The end.

    async def _stop_and_report(self, code: int) -> int:
        """Stop everything and print what failed. Returns the exit code, which a failure to stop may replace."""
        try:
            await self._stop(code)
            self._lifeline.close()
            return await self._orders.unless_ordered(self._await_end_and_report(code))
        except StopOrdered:  # the third signal: the keeper stops the rest
            return code
        finally:
            self._lifeline.close()

    async def _stop(self, code: int) -> None:
        """Stop everything. An order meanwhile, or the timeout, kills the remaining processes at once."""
        self._is_ending = True
        sd_notify.notify(os.environ, sd_notify.STOPPING)
        if self._limit_seconds is not None:
            kill_after = max(self._limit_seconds - _KILLING_SECONDS, self._limit_seconds / 2)
            asyncio.get_running_loop().call_later(kill_after, self._orders.add_end_of_time)
        try:
            await self._orders.unless_ordered(self._end_events_and_stop(code))
        except StopOrdered:
            self._say("killing the remaining processes")
            await self._orders.unless_ordered(
                self._order_stop({**self._stop_options, "kill": True, "deps": False})
            )
        finally:
            if self._output is not None:
                await self._output.finish()

    async def _end_events_and_stop(self, code: int) -> None:
        await self._events.finish()
        self._print_held_events()  # the start may have been interrupted
        names = [*self._events.died, *self._failures]
        has_failed = bool(names) or code not in (DONE, INTERRUPTED, TERMINATED)
        if self._command and has_failed:
            names = names or [item.name for item in self._servers]
            self._last_logs = await find_logs(self._client, self._pool, names)
        await self._order_stop(self._stop_options)

    async def _order_stop(self, options: dict[str, object]) -> None:
        try:
            # The servers' last lines show the progress.
            with Progress("stop", quiet=self._quiet or self._output is not None) as progress:
                result = await self._client.ask(Result, "stop", {"options": options}, progress)
        except ControlError:
            return  # it has ended already
        if self.outcome.items and result.items:
            names = {item.name for item in self._servers}
            self.outcome.items = [item for item in result.items if item.name in names]
        await in_thread(await_exit_if_pool_ends, result)

    async def _await_end_and_report(self, code: int) -> int:
        # Even if the supervisor was exiting and did not answer.
        await in_thread(wait_for_exit, self._keeper.keeper_pid)
        if self._orders.reader_is_gone:
            code = READER_GONE
        code = INTERRUPTED if self._orders.interrupted else await self._pool_exit_status_or(code)
        if self._command:
            await self._print_failures()
            if self._stderr.isatty():
                self._say("the pool has stopped")  # not visible from the end of CMD
        return code

    async def _pool_exit_status_or(self, code: int) -> int:
        """The pool's own exit status if it has ended by itself, because a mandatory server failed; else `code`."""
        record = read_exit(self._pool.directory)
        if not record:
            return code
        await in_thread(wait_for_exit, record["keeper_pid"])
        reason = self._events.without_known_reasons(str(record["reason"]))
        self._say(f"the pool has ended: {render.printable(reason)}", "error")
        return int(record["status"])

    async def _print_failures(self) -> None:
        """Print which servers died while the user's command ran, and the last log lines of servers that failed.

        If only the command failed, print the last log lines of all servers.
        """
        died = self._events.died
        logs = await in_thread(lambda: last_lines(self._last_logs, died, self._begun, objects=self._objects))
        if self._has_run:
            for line in death_lines(died, os.path.basename(self._command[0]), logs):
                self._say(line, "error")
        else:  # the start has reported why it failed
            logs = {name: lines_beside(self._failures.get(name, ""), lines) for name, lines in logs.items()}
        if not self._quiet:
            which = "other" if self._failures and not self._has_run else "last"
            sys.stderr.write(log_sections(logs, objects=self._objects, which=which))

    # Messages.

    def _flush_diagnostics(self) -> None:
        """Print the problems so far and clear them; with -o json and jsonl keep them for the output at the end."""
        if self._output_form not in ("json", "jsonl"):
            self._explain(self.outcome)
            self.outcome.errors, self.outcome.warnings = [], []

    def _explain(self, outcome: Outcome) -> None:
        outcome.quiet = self._quiet
        render.print_diagnostics(outcome)

    def _print_held_events(self) -> None:
        """Print the events of a start that a command waits for, and from now on every event at once."""
        self._is_starting = False
        while self._held_events:
            self._print_event(*self._held_events.pop(0))

    def _print_event(self, event: JournalEvent, text: str, level: str) -> None:
        if self._is_starting:  # the result of the start may have the same cause
            self._held_events.append((event, text, level))
            return
        # A failed start, which ends a pool with a command, may have reported this exit with its place in the code.
        failure = self._failures.get(event.server, "") if self._command and event.next_step else ""
        if self._quiet or (failure and failure.startswith(event.cause or event.message)):
            return
        if self._objects:
            document = {"time": event.time, "server": event.server, "message": text, "level": level}
            line = json_without_commands(document)
        else:
            line = render.printable(text)
        sys.stderr.write(f"{line}\n")

    def _say(self, text: str, level: str = "info") -> None:
        if not self._quiet:
            sys.stderr.write(own_line(text, level, objects=self._objects))
