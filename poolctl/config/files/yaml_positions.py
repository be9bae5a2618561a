"""Where each key and element of a YAML text stands."""

from __future__ import annotations

from typing import Any

import yaml

from poolctl.config.files.yaml_file import merges

Path = tuple[str | int, ...]
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def positions(text: str) -> dict[Path, tuple[int, int]]:
    """Line and column of every key and element of a valid text; what an alias repeats is where the alias is."""
    found: dict[Path, tuple[int, int]] = {}
    # Open collections: the path to each, a list's next index, and a table's key that waits for its value.
    stack: list[list[Any]] = []
    events: Any = yaml.parse(text, Loader=_LOADER)
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        path: Path = ()
        if stack:
            frame = stack[-1]
            if frame[1] is None and frame[2] is None:
                key = _key(event)
                frame[2] = (key, merges(event))
                if not merges(event):
                    found.setdefault((*frame[0], key), _place(event))
                continue
            path = _next(frame)
            if frame[1] is not None:
                found.setdefault(path, _place(event))
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append([path, 0 if isinstance(event, yaml.SequenceStartEvent) else None, None])
    return found


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _key(event: Any) -> str:
    return str(getattr(event, "value", ""))


def _next(frame: list[Any]) -> Path:
    """The path of the value that comes now; of what is merged in, the table itself."""
    if frame[1] is not None:
        frame[1] += 1
        return (*frame[0], frame[1] - 1)
    (key, merged), frame[2] = frame[2], None
    return tuple(frame[0]) if merged else (*frame[0], key)
