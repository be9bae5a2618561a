"""Random documents for the properties of parsers, and the paths in them."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

keys = st.text(min_size=1, max_size=8)
# YAML 1.1 and 1.2 disagree about 1e3: left to the examples below.
numberlike = re.compile(r"[-+0-9.eExo_:]+")
words = st.text(max_size=12).filter(lambda text: not numberlike.fullmatch(text))
scalars = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), words)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=15,
)


def paths(value: Any, base: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """The path of every key and element."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = set()
    for key, inner in items:
        found |= {(*base, key)} | paths(inner, (*base, key))
    return found
