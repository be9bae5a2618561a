"""Metrics in the formats read by Prometheus: text format 0.0.4 and OpenMetrics 1.0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = Mapping[str, str]


class Family:
    """One metric with its samples. `kind` is counter, gauge, histogram or info; a unit is a suffix of the name.

    The name is the OpenMetrics name, without the suffixes `_total` of counters and `_info` of infos.
    """

    __slots__ = ("help", "kind", "name", "samples", "unit")

    def __init__(self, name: str, kind: str, help_: str, unit: str = "") -> None:
        assert not unit or name.endswith(f"_{unit}"), name
        self.name = name
        self.kind = kind
        self.help = help_
        self.unit = unit
        self.samples: list[tuple[str, Labels, float]] = []

    def add(self, value: float | None, **labels: str) -> None:
        """Add a sample; None adds nothing."""
        if value is not None:
            suffix = {"counter": "_total", "info": "_info"}.get(self.kind, "")
            self.samples.append((suffix, labels, value))

    def spread(self, bounds: Sequence[float], counts: Sequence[int], total: float, **labels: str) -> None:
        """Add a histogram. `counts` holds the counts between the bounds and, last, above all bounds."""
        below = 0
        for bound, count in zip((*bounds, math.inf), counts, strict=True):
            below += count
            self.samples.append(("_bucket", {**labels, "le": _number(float(bound))}, below))
        self.samples.append(("_count", labels, below))
        self.samples.append(("_sum", labels, total))


def render(families: Iterable[Family], *, openmetrics: bool = False) -> str:
    """The text of all families that have samples."""
    lines: list[str] = []
    for family in families:
        if family.samples:
            lines += _head(family, openmetrics)
            lines += [
                f"{family.name}{suffix}{_labels(labels)} {_number(value)}"
                for suffix, labels, value in family.samples
            ]
    if openmetrics:
        lines.append("# EOF")
    return "\n".join([*lines, ""])


def wants_openmetrics(accept: str) -> bool:
    """Whether a client's Accept header prefers OpenMetrics (RFC 9110 §12.5.1)."""
    ours, others = 0.0, 0.0
    for part in accept.lower().replace(" ", "").split(","):
        kind, *pairs = part.split(";")
        parameters = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        try:
            quality = float(parameters.get("q", 1))
        except ValueError:
            continue
        if kind in ("text/plain", "text/*", "*/*"):
            others = max(others, quality)
        elif kind == "application/openmetrics-text":
            known = parameters.get("version", "1.0.0").strip('"') in ("1.0.0", "0.0.1")
            ours = max(ours, quality if known else 0.0)
    return ours > 0 and ours >= others


def _head(family: Family, openmetrics: bool) -> list[str]:
    name, kind = family.name, family.kind
    text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
    if not openmetrics:
        name += {"counter": "_total", "info": "_info"}.get(kind, "")
        return [f"# HELP {name} {text}", f"# TYPE {name} {'gauge' if kind == 'info' else kind}"]
    text = text.replace('"', '\\"')
    unit = [f"# UNIT {name} {family.unit}"] if family.unit else []
    return [f"# TYPE {name} {kind}", *unit, f"# HELP {name} {text}"]


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))
