"""Tests that are coroutines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")
Scene = Coroutine[Any, Any, None]


def played_by(run: Callable[[Scene], object]) -> Callable[[Callable[P, Scene]], Callable[P, None]]:
    """Decorator: `run`, such as `asyncio.run`, runs the test's coroutine on a loop of its own."""

    def decorate(test: Callable[P, Scene]) -> Callable[P, None]:
        @functools.wraps(test)
        def play(*args: P.args, **kwargs: P.kwargs) -> None:
            run(test(*args, **kwargs))

        return play

    return decorate


def staged_by(stage: str | Callable[..., object]) -> Callable[[Callable[..., Scene]], Callable[..., None]]:
    """Decorator: `stage` runs the test's coroutine, and passes what it has built as its positional-only arguments.

    `stage` is a function that takes a coroutine function, or the name of a fixture that is one.
    """

    def decorate(test: Callable[..., Scene]) -> Callable[..., None]:
        signature = inspect.signature(test)
        named = [each for each in signature.parameters.values() if each.kind is not each.POSITIONAL_ONLY]

        @functools.wraps(test)
        def play(**fixtures: Any) -> None:
            run = fixtures.pop(stage) if isinstance(stage, str) else stage
            run(lambda *given: test(*given, **fixtures))

        if isinstance(stage, str):
            named.append(inspect.Parameter(stage, inspect.Parameter.POSITIONAL_OR_KEYWORD))
        play.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return play

    return decorate
