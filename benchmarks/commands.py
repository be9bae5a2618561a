"""Wall time of commands compared to that of a program of ten lines with Typer and the options of `list`."""

from __future__ import annotations

import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

from .project import Project
from .report import Row

SERVERS = 100
MANY_SERVERS = 1000
TURNS = 7  # commands are short, so each repetition runs several
TEN_LINES = """
import enum, typing, typer
app = typer.Typer(rich_markup_mode=None)
State = enum.StrEnum("State", ["running", "stopped", "failed"])
Words, Flag = typing.Optional[typing.List[str]], typing.Annotated[bool, typer.Option()]
Some = typing.Annotated[Words, typer.Option()]
States = typing.Annotated[typing.Optional[typing.List[State]], typer.Option()]
@app.command()
def show(targets: Words = None, config: Some = None, pool: str = "", quiet: Flag = False, verbose: Flag = False,
         name: Some = None, bind: Some = None, expose: Some = None, tag: Some = None, state: States = None,
         health: States = None, invert: Flag = False, allow_empty: Flag = False, output: str = ""):
    typer.echo("users")
app([])
"""


def run(options: Namespace) -> Iterator[Row]:
    repeat = TURNS * options.repeat
    servers, many = (3, 30) if options.quick else (SERVERS, MANY_SERVERS)
    with Project(servers) as project:
        without = _alternately(project, {"validate": ("validate",), "list": ("list",)}, repeat)
        project.run("start")
        commands = {"list": ("list",), "status": ("status",), "list -o json": ("list", "-o", "json")}
        running = _alternately(project, commands, repeat)
        project.run("stop")
    for name, samples in running.items():
        if name != "ten":
            yield _row(f"{name} of {servers} running", samples, running["ten"], most_ratio=1.3)
    for name in ("validate", "list"):
        yield _row(f"{name} of {servers}, no supervisor", without[name], without["ten"])
    with Project(1, disabled=many - 1) as project:
        project.run("start")
        running = _alternately(project, {"json": ("list", "-o", "json")}, repeat)
        project.run("stop")
    yield _row(f"list -o json of {many}", running["json"], running["ten"], most_ratio=1.3)


def _alternately(
    project: Project, commands: dict[str, tuple[str, ...]], repeat: int
) -> dict[str, list[float]]:
    """Milliseconds of each command and of the ten lines, interleaved so that noise affects all of them."""
    found: dict[str, list[float]] = {name: [] for name in ("ten", *commands)}
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-I", "-c", TEN_LINES], stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
        found["ten"].append(1000 * (time.perf_counter() - started))
        for name, arguments in commands.items():
            found[name].append(1000 * project.seconds(*arguments))
    return found


def _row(what: str, samples: list[float], ten: list[float], *, most_ratio: float | None = None) -> Row:
    return Row(what, "ms", samples, "ten lines of Typer", ten, most_ratio=most_ratio)
