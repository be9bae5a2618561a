"""The results as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One figure: all samples, the samples it is compared with, and its target.

    `paired`: each sample was measured right beside the one that it is compared with, so that both were equally slowed
    down by other processes.
    """

    what: str
    unit: str
    samples: list[float]
    against: str = ""
    against_samples: list[float] = field(default_factory=list)
    most: float | None = None
    most_ratio: float | None = None
    note: str = ""
    paired: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        """The ratio of the medians, or the median ratio of the pairs; None without samples to compare with."""
        if not self.against_samples or not statistics.median(self.against_samples):
            return None
        if self.paired:
            pairs = zip(self.samples, self.against_samples, strict=True)
            return statistics.median(one / other for one, other in pairs)
        return self.median / statistics.median(self.against_samples)

    @property
    def reached(self) -> bool | None:
        """Whether all targets of this figure are reached; None without targets."""
        verdicts = []
        if self.most is not None:
            verdicts.append(self.median <= self.most)
        if self.most_ratio is not None and self.ratio is not None:
            verdicts.append(self.ratio <= self.most_ratio)
        return all(verdicts) if verdicts else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "median": self.median, "min": min(self.samples), "max": max(self.samples),
            "ratio": self.ratio, "reached": self.reached,
        }  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    head = ("what", "median", "min", "max", "", "target", "", "compared with", "median", "ratio")
    lines = [head, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = {0, 4, 5, 6, 7}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def store(rows: Sequence[Row]) -> Path:
    """Write the rows and a description of the machine to a JSON file; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    document = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": machine()}
    path.write_text(json.dumps(document | {"rows": [row.as_json() for row in rows]}, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": f"{sys.implementation.name} {platform.python_version()}",
        "executable": os.path.realpath(sys.executable),
        "uvicorn": _version("uvicorn"),
        "uvloop": _version("uvloop"),
        "httptools": _version("httptools"),
        "pydantic": _version("pydantic"),
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cells(row: Row) -> tuple[str, ...]:
    targets = []
    if row.most is not None:
        targets.append(f"≤ {row.most:g} {row.unit}")
    if row.most_ratio is not None:
        targets.append(f"≤ {row.most_ratio:g} ×")
    against = _number(statistics.median(row.against_samples)) if row.against_samples else ""
    verdict = {True: "ok", False: "MISSED", None: ""}[row.reached]
    return (
        f"{row.what} ({row.note})" if row.note else row.what,
        _number(row.median), _number(min(row.samples)), _number(max(row.samples)), row.unit,
        ", ".join(targets), verdict,
        row.against, against, "" if row.ratio is None else f"{row.ratio:.3f}",
    )  # fmt: skip


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"
