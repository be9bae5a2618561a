"""Lines of several servers' output as JSON objects, one a line, for those who collect the logs of containers."""

from __future__ import annotations

import json
import re
from typing import Any

from poolctl.logs.line import Line
from poolctl.logs.record import Record, parse_record

_LEVELS = {
    "trace": "debug",
    "warn": "warning",
    "err": "error",
    "fatal": "critical",
    "notice": "info",
    **{level: level for level in ("debug", "info", "warning", "error", "critical")},
}
# uvicorn's "INFO:     …", logging's "ERROR:root:…", "[warn] …", and either after a time.
_SAID = re.compile(rf"^[\d\s:.,TZ+-]*\[?({'|'.join(_LEVELS)})\b[\]:\s]", re.IGNORECASE)


class Objects:
    """Each line with `time`, `server` and `message`, `level` when it can be told.

    A line that is a JSON record itself keeps its members; its time stays beside ours as `logged`.
    """

    def line(self, line: Line) -> str:
        """The object of the line, with its end."""
        document: dict[str, Any] = {"time": line.time, "server": line.name}
        if line.pid is not None:
            document["pid"] = line.pid
        record = parse_record(line.text)
        if record is not None:
            _merge(document, record)
        else:
            document["message"] = line.text
            if said := _SAID.match(line.text):
                document["level"] = _LEVELS[said[1].lower()]
        return json.dumps(document) + "\n"


def _merge(document: dict[str, Any], record: Record) -> None:
    document["message"] = record.message
    if record.level:
        document["level"] = _LEVELS.get(record.level.lower(), record.level.lower())
    for key, value in record.fields.items():
        document.setdefault("logged" if key == "time" else key, value)
