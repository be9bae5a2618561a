"""What a command reports about the servers that have not reached its goal."""

from __future__ import annotations

from poolctl.core.rollout import explaining

FRAMES = ['  File "/srv/app.py", line 1, in <module>', "    raise RuntimeError('broken release')"]
HEADER = "Traceback (most recent call last):"


def test_traceback_is_reduced_to_its_error() -> None:
    lines = ["connecting", HEADER, *FRAMES, "RuntimeError: broken release"]
    assert explaining(lines) == ["connecting", "RuntimeError: broken release"]


def test_rest_of_a_cut_traceback_is_reduced_to_its_error() -> None:
    again = "During handling of the above exception, another exception occurred:"
    lines = [*FRAMES, "KeyError: 'host'", "", again, "", HEADER, *FRAMES, "OSError: no host"]
    assert explaining(lines) == ["KeyError: 'host'", "OSError: no host"]


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
