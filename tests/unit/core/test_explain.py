"""How failures are explained, and what of a program's output tells the cause."""

from __future__ import annotations

import errno
import traceback

import pytest

from poolctl import ServerConfig
from poolctl.core.explain import (
    cause_of,
    explanatory_lines,
    failure_of,
    give_up_text,
    message_and_hint,
    note_failure,
    restart_text,
)
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolStopError, ServerError
from poolctl.runners.runner_protocol import WorkerFailed
from tests.growth import grows_too_fast, repeated

FRAMES = ['  File "/srv/app.py", line 1, in <module>', "    raise RuntimeError('broken release')"]
PLACE = FRAMES[0].strip()
HEADER = "Traceback (most recent call last):"


def test_traceback_is_reduced_to_its_error_and_place() -> None:
    lines = ["connecting", HEADER, *FRAMES, "RuntimeError: broken release"]
    assert explanatory_lines(lines) == ["connecting", PLACE, "RuntimeError: broken release"]


def test_line_that_begins_many_frames_is_read_in_one_pass() -> None:
    frames = repeated('  File "', 'File "', '", line 1')
    lines = [HEADER, *FRAMES]
    assert not grows_too_fast(lambda text: explanatory_lines([*lines, text]), frames, large=16_384)


def test_place_of_an_error_raised_in_a_library_is_the_last_line_of_the_application() -> None:
    library = [
        '  File "/srv/.venv/lib/python3.11/site-packages/db.py", line 9, in connect',
        "    raise Refused",
    ]
    assert explanatory_lines([HEADER, *library, *FRAMES, *library, "db.Refused"]) == [PLACE, "db.Refused"]
    assert explanatory_lines([HEADER, *library, "db.Refused"]) == [library[0].strip(), "db.Refused"]


def test_exception_group_is_reduced_to_its_errors_and_places() -> None:
    group = ExceptionGroup("two tasks", [_raised("no host"), _raised("no port")])
    lines = [*"".join(traceback.format_exception(group)).splitlines(), "INFO:     bye"]
    places = [f'File "{__file__}", line {_raised.__code__.co_firstlineno + 2}, in _raised']
    assert explanatory_lines(lines) == [
        "ExceptionGroup: two tasks (2 sub-exceptions)",
        *places,
        "KeyError: 'no host'",
        *places,
        "KeyError: 'no port'",
        "INFO:     bye",
    ]


def _raised(message: str) -> Exception:
    try:
        raise KeyError(message)
    except KeyError as error:
        return error


def test_rest_of_a_cut_traceback_is_reduced_to_its_error_and_place() -> None:
    again = "During handling of the above exception, another exception occurred:"
    lines = [*FRAMES, "KeyError: 'host'", "", again, "", HEADER, *FRAMES, "OSError: no host"]
    assert explanatory_lines(lines) == [PLACE, "KeyError: 'host'", PLACE, "OSError: no host"]


def test_reports_of_uvicorn_on_its_course_are_left_out() -> None:
    lines = [
        "INFO:     Application startup complete.",
        "INFO:     the database is read-only",
        "ERROR:    Application startup failed. Exiting.",
        "INFO:     Application shutdown complete.",
    ]
    assert explanatory_lines(lines) == ["INFO:     the database is read-only"]


def test_indented_output_outside_a_traceback_is_kept() -> None:
    assert explanatory_lines(["configuration:", "  host = db"]) == ["configuration:", "  host = db"]


NODE = """
node:events:502
      throw er; // Unhandled 'error' event
      ^

Error: listen EADDRINUSE: address already in use 127.0.0.1:8271
    at Server.setupListenHandle [as _listen2] (node:net:1908:16)
    at process.processTicksAndRejections (node:internal/process/task_queues:83:21)
Emitted 'error' event on Server instance at:
    at emitErrorNT (node:net:1944:8)
    at process.processTicksAndRejections (node:internal/process/task_queues:82:21) {
  code: 'EADDRINUSE',
  errno: -98,
  syscall: 'listen',
  address: '127.0.0.1',
  port: 8271
}

Node.js v20.20.2
"""
NODE_MODULE = """
node:internal/modules/cjs/loader:1210
  throw err;
  ^

Error: Cannot find module 'express'
Require stack:
- /srv/app.js
    at Module._resolveFilename (node:internal/modules/cjs/loader:1207:15)
    at Function.executeUserEntryPoint [as runMain] (node:internal/modules/run_main:164:12) {
  code: 'MODULE_NOT_FOUND',
  requireStack: [ '/srv/app.js' ]
}

Node.js v20.20.2
"""
IN_USE = "address 127.0.0.1:8271 is in use (by this pool)"


def program(*command: str) -> ServerConfig:
    return ServerConfig(name="web", bind="127.0.0.1:8271", command=list(command) or ["prog"])


def test_stack_of_node_is_reduced_to_its_error() -> None:
    (error,) = explanatory_lines(NODE.splitlines())
    assert error == "Error: listen EADDRINUSE: address already in use 127.0.0.1:8271"
    assert explanatory_lines(NODE_MODULE.splitlines()) == [
        "Error: Cannot find module 'express'",
        "- /srv/app.js",
    ]


@pytest.mark.parametrize(
    ("printed", "text", "own"),
    [
        (NODE, IN_USE, True),
        ("2026/11/22 12:34:56 listen tcp 127.0.0.1:8271: bind: address already in use", IN_USE, True),
        ("ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8271): address already in use",
         IN_USE, True),
        ("Web server failed to start. Port 8271 was already in use.", IN_USE, True),
        ("OSError: [Errno 98] Address already in use", "OSError: [Errno 98] Address already in use", True),
        ("12:34:56 Address already in use (os error 98)", "12:34:56 Address already in use (os error 98)", True),
        ("Error: listen EADDRINUSE: address already in use :::9090\nbye",
         "Error: listen EADDRINUSE: address already in use :::9090", False),
        ("port 9090 is in use, trying 9091\nKeyError: 'DSN'", "KeyError: 'DSN'", False),
        (NODE_MODULE, "Error: Cannot find module 'express'", False),
        ("starting\nError: no such table\ncleaning up\n", "Error: no such table", False),
        ("java.net.BindException: Address already in use\n\tat Main.main(Main.java:5)",
         "java.net.BindException: Address already in use", True),
        ("starting\nusage: prog FILE", "usage: prog FILE", False),
        ("", "", False),
    ],
)  # fmt: skip
def test_cause_of_a_failure_is_found_in_all_of_the_output(printed: str, text: str, own: bool) -> None:
    assert cause_of(printed.splitlines(), program()) == (text, own)


def test_last_line_is_no_cause_of_a_program_that_was_killed() -> None:
    assert cause_of(["loading the model"], program(), refused=False) == ("", False)
    assert cause_of(["loading", "Error: no memory"], program(), refused=False).text == "Error: no memory"


def test_address_of_a_program_that_binds_itself_is_not_used_by_this_pool() -> None:
    assert cause_of(NODE.splitlines(), program("{port}")).text == "address 127.0.0.1:8271 is in use"


def new_entry() -> Entry:
    return Entry(ServerConfig(name="web", bind="127.0.0.1:1", app="a:b"))


def test_failure_names_the_server_and_where_its_output_is() -> None:
    entry = new_entry()
    failure = failure_of(entry, "gone")
    assert (failure.message, failure.name, failure.hint) == ("gone", "web", "poolctl logs web")
    assert failure_of(entry, "gone", "").hint == ""
    assert failure_of(entry, "gone", "look").hint == "look"
    stopped = failure_of(entry, "gone", kind=PoolStopError)
    assert (stopped.code, stopped.error) == (PoolStopError.code, PoolStopError.error)
    assert failure.code != stopped.code


def test_cause_of_a_failure_has_no_frames_and_a_reworded_error_is_no_cause() -> None:
    try:
        raise OSError("first")
    except OSError as error:
        first = error
    reworded = ServerError("second")
    reworded.__cause__ = first
    for cause in (first, reworded):
        failure = failure_of(new_entry(), "gone", cause=cause)
        assert failure.__cause__ is first
        assert first.__traceback__ is None
    assert failure_of(new_entry(), "gone", cause=ServerError("x")).__cause__ is None


def test_each_failed_attempt_is_counted_and_the_last_one_kept() -> None:
    entry = new_entry()
    failures = [failure_of(entry, message) for message in ("one", "two")]
    for count, failure in enumerate(failures, 1):
        note_failure(entry, failure)
        assert (entry.observed.failures, entry.observed.failure) == (count, failure)


def test_exception_of_a_runner_is_explained_and_logged_only_if_unexpected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    message, hint = message_and_hint(OSError(errno.EMFILE, "x"))
    assert (message, "ulimit -n" in hint) == ("cannot start a worker: Too many open files", True)
    assert message_and_hint(OSError(errno.EPERM, "x")) == (
        "cannot start a worker: Operation not permitted",
        "",
    )
    assert message_and_hint(OSError("no number")) == ("no number", "")
    assert message_and_hint(WorkerFailed("gone", hint="look")) == ("gone", "look")
    assert message_and_hint(ServerError("gone", hint="look")) == ("gone", "look")
    assert caplog.records == []
    assert message_and_hint(RuntimeError("odd")) == ("odd", "")
    assert [record.message for record in caplog.records] == ["not expected of a runner"]


@pytest.mark.parametrize(
    ("delay_seconds", "count", "said"),
    [
        (0, 0, "restarting"),
        (0, 1, "restarting"),
        (0, 2, "restarting (2nd time)"),
        (0.123, 1, "restarting in 120ms"),
        (2.04, 3, "restarting in 2s (3rd time)"),
        (1.04, 11, "restarting in 1s (11th time)"),
        (0, 21, "restarting (21st time)"),
        (0, 112, "restarting (112th time)"),
        (0, 10, "restarting (10th time)"),
    ],
)
def test_sentence_about_a_restart_has_its_delay_and_number(
    delay_seconds: float, count: int, said: str
) -> None:
    assert restart_text(delay_seconds, count) == said


def test_sentence_about_a_final_exit_says_where_the_output_is() -> None:
    assert give_up_text(new_entry()) == "not restarted: poolctl logs web"
    assert give_up_text(new_entry(), 3).startswith("given up after 3 restarts")
    assert give_up_text(new_entry(), 3).endswith(": poolctl logs web")
