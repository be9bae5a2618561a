"""The reason of a failure in the output of a program."""

from __future__ import annotations

import traceback

import pytest

from poolctl import ServerConfig
from poolctl.core.failures import cause_of, explaining

FRAMES = ['  File "/srv/app.py", line 1, in <module>', "    raise RuntimeError('broken release')"]
PLACE = FRAMES[0].strip()
HEADER = "Traceback (most recent call last):"


def test_traceback_is_reduced_to_its_error_and_place() -> None:
    lines = ["connecting", HEADER, *FRAMES, "RuntimeError: broken release"]
    assert explaining(lines) == ["connecting", PLACE, "RuntimeError: broken release"]


def test_place_of_an_error_raised_in_a_library_is_the_last_line_of_the_application() -> None:
    library = [
        '  File "/srv/.venv/lib/python3.11/site-packages/db.py", line 9, in connect',
        "    raise Refused",
    ]
    assert explaining([HEADER, *library, *FRAMES, *library, "db.Refused"]) == [PLACE, "db.Refused"]
    assert explaining([HEADER, *library, "db.Refused"]) == [library[0].strip(), "db.Refused"]


def test_exception_group_is_reduced_to_its_errors_and_places() -> None:
    group = ExceptionGroup("two tasks", [_raised("no host"), _raised("no port")])
    lines = [*"".join(traceback.format_exception(group)).splitlines(), "INFO:     bye"]
    places = [f'File "{__file__}", line {_raised.__code__.co_firstlineno + 2}, in _raised']
    assert explaining(lines) == [
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
    assert explaining(lines) == [PLACE, "KeyError: 'host'", PLACE, "OSError: no host"]


def test_reports_of_uvicorn_on_its_course_are_left_out() -> None:
    lines = [
        "INFO:     Application startup complete.",
        "INFO:     the database is read-only",
        "ERROR:    Application startup failed. Exiting.",
        "INFO:     Application shutdown complete.",
    ]
    assert explaining(lines) == ["INFO:     the database is read-only"]


def test_indented_output_outside_a_traceback_is_kept() -> None:
    assert explaining(["configuration:", "  host = db"]) == ["configuration:", "  host = db"]


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
    (error,) = explaining(NODE.splitlines())
    assert error == "Error: listen EADDRINUSE: address already in use 127.0.0.1:8271"
    assert explaining(NODE_MODULE.splitlines()) == ["Error: Cannot find module 'express'", "- /srv/app.js"]


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
