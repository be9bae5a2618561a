"""JSON for processes and commands that should start at once: `loads` and `dumps` with the defaults of `json`.

That module, with `re`, would cost each of them two milliseconds or more, a fifth of a command's time. Where the
interpreter has no `_json`, they are those of `json`.
"""

from __future__ import annotations

try:
    import _json
except ImportError:  # not CPython
    _json = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"  # RFC 8259 §2


class _Rules:
    """The attributes that the scanner reads: the defaults of json.JSONDecoder."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def loads(text: str | bytes) -> Any:
    """The value of a JSON document. Raises ValueError."""
    if _json is None:
        import json

        return json.loads(text)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogatepass")
    text = text.strip(_SPACE)
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):
        # SystemError: up to Python 3.12 the scanner raises nothing where json.decoder has not been imported.
        raise ValueError("not a JSON value") from None
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def dumps(value: object, *, default: Callable[..., object] | None = None) -> str:
    """The value as a JSON document on one line; `default` converts values for which JSON has no form."""
    if _json is None:
        import json

        return json.dumps(value, default=default)
    return "".join(_encoder(", ", ": ", default)(value, 0))


def dumps_compact(value: object) -> str:
    """The value as a JSON document without spaces; it refers nowhere to itself."""
    if _json is None:
        import json

        return json.dumps(value, separators=(",", ":"))
    return "".join(_encode_compact(value, 0))


def _refuse(value: object) -> object:
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _encoder(item: str, key: str, default: Callable[..., object] | None, *, circles: bool = True) -> Any:
    """json's encoder; without looking for `circles` it can be kept, and one that it meets is a RecursionError."""
    found: dict[int, object] | None = {} if circles else None
    return _json.make_encoder(
        found, default or _refuse, _json.encode_basestring_ascii, None, key, item, False, False, True
    )


if _json is not None:
    _rules: Any = _Rules
    _scan = _json.make_scanner(_rules)
    _encode_compact = _encoder(",", ":", None, circles=False)
