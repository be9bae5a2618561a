"""JSON for commands that should start at once: `loads` and `dumps` with the defaults of the module `json`.

That module, with `dataclasses`, would cost each command two milliseconds and a fifth of its time. Where the interpreter
has no `_json`, they are those of `json`.
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
    rules: Any = _Rules
    try:
        value, end = _json.make_scanner(rules)(text, 0)
    except StopIteration:
        raise ValueError("not a JSON value") from None
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def dumps(value: object, *, default: Callable[..., object] | None = None) -> str:
    """The value as a JSON document on one line; `default` converts values for which JSON has no form."""
    if _json is None:
        import json

        return json.dumps(value, default=default)
    encode = _json.make_encoder(
        {}, default or _refuse, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True
    )
    return "".join(encode(value, 0))


def _refuse(value: object) -> object:
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
