"""A process that can create no thread, as at the limit of processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Larger than the address space: no thread can have such a stack.
_IMPOSSIBLE_STACK_BYTES = 1 << 48


@contextmanager
def no_more_threads() -> Iterator[None]:
    before = threading.stack_size(_IMPOSSIBLE_STACK_BYTES)
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=int).start()
        yield
    finally:
        threading.stack_size(before)
