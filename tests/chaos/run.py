"""Runs a program: rounds of steps under load, each from a quiet start to a stop that leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.http_get import get

from . import leaks
from .program import Step, rounds
from .stage import Fault, Stage
from .steps import Steps
from .watch import Watch

ROLES = ("worker", "zygote", "app zygote", "logger", "supervisor", "keeper")
VERBS: tuple[str, ...] = ("reload", "scale", "drain", "disable", "kill_both", "upgrade")


def run(seed: int, seconds: float, say: Callable[[str], None] = print) -> int:
    """Run the program; returns the number of steps. Raises Fault with the seed and all steps so far."""
    history: list[Step] = []
    parts = rounds(seed, ROLES, VERBS)
    began = time.monotonic()
    deadline = began + seconds
    stage = Stage()
    try:
        while time.monotonic() < deadline:
            _round(stage, next(parts), deadline, history, lambda text: say(f"{_after(began)} {text}"))
    except Exception as error:
        story = "\n".join(map(str, history))
        say(f"{_after(began)} FAULT")
        text = f"seed {seed} (python -m tests.chaos --seed {seed})\n{story}\n{error}\n{stage.words()}"
        raise Fault(text) from error
    finally:
        stage.close()
    return len(history)


def _round(
    stage: Stage, steps: list[Step], deadline: float, history: list[Step], say: Callable[[str], None]
) -> None:
    stage.has_extra = False
    stage.workers["several"] = 2
    stage.write()
    stage.ok("start")
    stage.settled()
    # After a restart everything exists that is created on first use.
    stage.ok("restart")
    assert get(stage.ports["sleepy"]).status == 200
    stage.settled(asleep=("sleepy",))
    quiet = leaks.take(stage)
    watch = Watch(stage)
    acts = Steps(stage, watch)
    try:
        watch.start()
        for step in steps:
            if time.monotonic() > deadline:
                break
            history.append(step)
            say(str(step))
            getattr(acts, step.what)(**step.options)
            watch.check()
        watch.stop()
    finally:
        watch.abort()
    acts.path_without_omitted_parts()
    leaks.same(stage, quiet)
    stage.ok("stop")
    leaks.nothing_left(stage)
    say(f"{watch.answered} answers; nothing lost, nothing left")


def _after(began: float) -> str:
    return f"{time.time():.1f} (+{time.monotonic() - began:.1f} s)"
