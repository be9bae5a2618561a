"""Start, restart and stop of N servers; their memory and idle cost."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from statistics import mean

from . import processes
from .answers import wait_for_all
from .baseline import BareLoop
from .project import Project
from .report import Row

MIB = 1024 * 1024
MEASURED_SIZE = 100  # memory and idle cost are measured with this many servers, or the maximum available
# The size of an idle uvicorn process, to decide whether the comparison fits into memory.
UVICORN_BYTES = 24 * MIB


class Samples:
    """The results of one size over all repetitions."""

    def __init__(self) -> None:
        self.start: list[float] = []
        self.returned: list[float] = []
        self.restart: list[float] = []
        self.stop: list[float] = []
        self.bare_start: list[float] = []
        self.bare_stop: list[float] = []


def run(options: Namespace) -> Iterator[Row]:
    yield _start_of_three(options.repeat)
    measured = max((size for size in options.sizes if size <= MEASURED_SIZE), default=options.sizes[0])
    for size in options.sizes:
        samples, costs = Samples(), []
        for turn in range(options.repeat):
            idle_seconds = options.idle_seconds if turn == 0 and size == measured else 0.0
            with Project(size) as project:
                _bare(project, samples, costs, idle_seconds)
                _pool(project, samples, costs, idle_seconds)
        yield from _lifecycle_rows(size, samples)
        yield from _cost_rows(size, costs)


def _start_of_three(repeat: int) -> Row:
    ours, bare = [], []
    for _ in range(repeat):
        with Project(3) as project:
            with BareLoop(project.directory, project.ports[:1]) as loop:
                bare.append(loop.start_seconds())
                loop.stop_seconds()
            ours.append(project.start_seconds()[0])
    return Row(
        "start 3, until the command returned", "s", ours, "one uvicorn", bare, most_ratio=3.5
    )  # fmt: skip


def _bare(project: Project, samples: Samples, costs: list[dict[str, float]], idle_seconds: float) -> None:
    if processes.available_memory_bytes() < 1.3 * len(project.ports) * UVICORN_BYTES:
        return
    with BareLoop(project.directory, project.ports) as loop:
        samples.bare_start.append(loop.start_seconds())
        if idle_seconds:
            costs.append(
                {
                    "uvicorn": mean(map(processes.pss_bytes, loop.pids)) / MIB,
                    "idle": processes.idle_percent(loop.pids, idle_seconds),
                }
            )
        samples.bare_stop.append(loop.stop_seconds())


def _pool(project: Project, samples: Samples, costs: list[dict[str, float]], idle_seconds: float) -> None:
    returned, answered = project.start_seconds()
    samples.returned.append(returned)
    samples.start.append(answered)
    samples.restart.append(project.seconds("restart"))
    wait_for_all(project.ports)
    if idle_seconds:
        everyone = [pid for pids in project.roles().values() for pid in pids]
        idle = processes.idle_percent(everyone, idle_seconds)
        # Later, because the process that reads the files exits after ten idle seconds.
        roles = project.roles()
        pss = {role: [processes.pss_bytes(pid) / MIB for pid in pids] for role, pids in roles.items()}
        costs.append(
            {role: mean(values) if role == "worker" else sum(values) for role, values in pss.items()}
            | {"idle": idle}
        )
    samples.stop.append(project.seconds("stop"))


def _lifecycle_rows(size: int, samples: Samples) -> Iterator[Row]:
    core = size == MEASURED_SIZE
    bare = "" if samples.bare_start else "the bare loop does not fit into memory"
    yield Row(
        f"start {size}, until all answered", "s", samples.start,
        "loop of uvicorn", samples.bare_start, most_ratio=0.12 if core else None, note=bare,
    )  # fmt: skip
    yield Row(f"start {size}, until the command returned", "s", samples.returned)
    yield Row(
        f"restart {size}, each ready before the old one stops", "s", samples.restart,
        "start", samples.start, most_ratio=1.5 if core else None,
    )  # fmt: skip
    yield Row(
        f"stop {size}", "s", samples.stop, "SIGTERM to each uvicorn", samples.bare_stop, most=0.4 if core else None
    )  # fmt: skip


def _cost_rows(size: int, costs: list[dict[str, float]]) -> Iterator[Row]:
    if not costs:
        return
    pool, bare = costs[-1], costs[0] if "uvicorn" in costs[0] else {}
    against = [bare["uvicorn"]] if bare else []
    yield Row(
        f"PSS of a worker, of {size}", "MiB", [pool["worker"]], "a uvicorn process", against, most_ratio=0.33
    )
    together = ("keeper", "supervisor", "zygote")
    for role in (*together, "logger"):
        if role in pool:
            yield Row(f"PSS of the {role}", "MiB", [pool[role]])
    megabytes = sum(pool.get(role, 0) for role in together) * MIB / 1e6
    yield Row("PSS of keeper, supervisor and zygote together", "MB", [megabytes], most=60)
    yield Row(
        f"idle, whole pool of {size}", "% of a core", [pool["idle"]],
        f"{size} × uvicorn", [bare["idle"]] if bare else [], most=0.5,
    )  # fmt: skip
