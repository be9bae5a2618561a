"""What a command reports about the servers that have not reached its goal."""

from __future__ import annotations

import traceback

from poolctl.core.await_servers import explaining

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
