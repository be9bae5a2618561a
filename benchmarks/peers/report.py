"""The tables and the picture of a run, written between the marks of the pages that show them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/peers/results.json"
PICTURE = ROOT / "docs/images/peers.svg"
README_PEERS = ("poolctl", "supervisord", "pm2", "circus", "gunicorn")
Results = Mapping[str, Any]
Form = Callable[[float], str]


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


def percent(value: float) -> str:
    return f"{value:.1f} %"


def number(value: float) -> str:
    return f"{value:,.0f}"


def microseconds(value: float) -> str:
    return f"{value:.0f} µs"


# Heading, figure and form of each column.
MANAGERS: Sequence[tuple[str, str, Form]] = (
    ("start", "start seconds", seconds),
    ("restart", "restart seconds", seconds),
    ("stop", "stop seconds", seconds),
    ("status", "status seconds", seconds),
    ("status, processor", "status processor seconds", seconds),
    ("memory", "memory bytes", megabytes),
    ("of the manager", "manager memory bytes", megabytes),
    ("idle", "idle percent of a core", percent),
)
SERVERS: Sequence[tuple[str, str, Form]] = (
    ("start", "start seconds", seconds),
    ("memory", "memory bytes", megabytes),
    ("kept connection", "keep_alive processor microseconds", microseconds),
    ("new connection", "new_connection processor microseconds", microseconds),
    ("kept, requests a second", "keep_alive requests per second", number),
    ("new, requests a second", "new_connection requests per second", number),
)


def write(results: Results) -> None:
    """Replace the tables in README.md and docs/performance.md, and the picture."""
    for path, blocks in pages(results).items():
        text = path.read_text()
        for name, block in blocks.items():
            text, count = _marked(name).subn(lambda match, block=block: f"{match[1]}{block}{match[2]}", text)
            if count != 1:
                raise ValueError(f"{path.name} has no marks of {name!r}")
        path.write_text(text)
    PICTURE.write_text(picture(results))


def pages(results: Results) -> dict[Path, dict[str, str]]:
    """What stands between the marks of each page, by their names."""
    performance = {f"managers {count}": managers(results, count) for count in results["managers"]}
    performance |= {f"losses {count}": losses(results, count) for count in results["managers"]}
    performance |= {"servers": servers(results), "versions": versions(results)}
    return {
        ROOT / "README.md": {"peers": summary(results)},
        ROOT / "docs/performance.md": performance,
    }


def written(path: Path, name: str) -> str:
    """What stands between the marks now."""
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", path.read_text(), re.DOTALL)
    return match[1] if match else ""


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def summary(results: Results) -> str:
    """Eight rows for the README: with a hundred servers, and on one port."""
    many, one = results["managers"]["100"], results["servers"]

    def of(figure: str, form: Form) -> dict[str, str]:
        return {name: _cell(found, figure, form) for name, found in many.items()}

    def of_server(figure: str, form: Form) -> dict[str, str]:
        return {name: _cell(found, figure, form) for name, found in one.items()}

    rows = [
        ("start 100 servers", of("start seconds", seconds)),
        ("restart 100 servers", of("restart seconds", seconds)),
        (
            "requests that fail meanwhile",
            {name: _failed(found, "restart") for name, found in many.items()}
            | {"gunicorn": _failed(one.get("gunicorn", {}), "reload, new_connection")},
        ),
        ("a killed server answers again after", of("crash seconds", seconds)),
        ("requests that fail meanwhile", {name: _failed(found, "crash") for name, found in many.items()}),
        (
            "manager killed, then a server: it answers after",
            {name: _after_manager(found) for name, found in many.items()},
        ),
        ("memory with 100 servers", of("memory bytes", megabytes)),
        (
            "processor time of a request, new connection",
            of_server("new_connection processor microseconds", microseconds),
        ),
    ]
    return _table(
        ["", *README_PEERS], ([what, *(cells.get(name, "") for name in README_PEERS)] for what, cells in rows)
    )


def managers(results: Results, count: str) -> str:
    """Times and costs of the managers of that many servers."""
    return _columns(results["managers"][count], MANAGERS)


def losses(results: Results, count: str) -> str:
    """What clients of the managers lost."""
    head = [
        "",
        "failed in a restart",
        "crash: answers again after",
        "failed meanwhile",
        "manager killed: servers that go on",
        "then a crash: answers after",
    ]
    return _table(
        head,
        (
            [
                name,
                _failed(found, "restart"),
                _cell(found, "crash seconds", seconds),
                _failed(found, "crash"),
                _cell(found, "manager killed: servers that go on", number),
                _after_manager(found),
            ]
            for name, found in results["managers"][count].items()
        ),
    )


def servers(results: Results) -> str:
    """Servers on one port, and proxies: processor time of a request, and what is lost in a reload."""
    found = results["servers"]
    table = _columns(found, SERVERS).splitlines()
    ends = (
        ["failed in a reload, kept", "failed in a reload, new"],
        ["---", "---"],
        *(
            [_failed(each, "reload, keep_alive"), _failed(each, "reload, new_connection")]
            for each in found.values()
        ),
    )
    return "".join(f"{line} {' | '.join(cells)} |\n" for line, cells in zip(table, ends, strict=True))


def versions(results: Results) -> str:
    """Versions and machine of the run."""
    tools = ", ".join(
        f"{name} {version}" for name, version in results["versions"].items() if name != "poolctl"
    )
    return f"{tools}; {results['machine']}.\n"


def _columns(found: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str, Form]]) -> str:
    rows = (
        [name, *(_cell(each, figure, form) for _, figure, form in columns)] for name, each in found.items()
    )
    return _table(["", *(head for head, _, _ in columns)], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(found: Mapping[str, Any], figure: str, form: Form) -> str:
    if figure not in found:
        return "–"
    value = found[figure]
    return "never" if value is None else form(value)


def _failed(found: Mapping[str, Any], what: str) -> str:
    separator = ": " if ", " in what else " "
    failed, sent = found.get(f"{what}{separator}failed"), found.get(f"{what}{separator}requests")
    return "–" if failed is None or sent is None else f"{failed:,} of {sent:,}"


def _after_manager(found: Mapping[str, Any]) -> str:
    if found.get("manager killed: servers that go on") == 0:
        return "no server left"
    return _cell(found, "manager killed: crash seconds", seconds)


def picture(results: Results) -> str:
    """A bar for the share of requests that fail while 100 servers are restarted, and for the time it takes."""
    many = {name: each for name, each in results["managers"]["100"].items() if "restart seconds" in each}
    groups = [
        ("restart of 100 servers", {name: each["restart seconds"] for name, each in many.items()}, seconds),
        (
            "requests that fail meanwhile",
            {
                name: 100 * each["restart failed"] / max(1, each["restart requests"])
                for name, each in many.items()
            },
            percent,
        ),
        ("memory with 100 servers", {name: each["memory bytes"] for name, each in many.items()}, megabytes),
    ]
    parts, top = [], 8
    for title, values, form in groups:
        top += 26
        parts.append(f'<text x="8" y="{top}" font-weight="bold">{html.escape(title)}</text>')
        most = max(values.values()) or 1
        for name, value in values.items():
            top += 24
            width = max(1, round(380 * value / most))
            fill = "#3f51b5" if name == "poolctl" else "#9fa8da"
            parts.append(f'<text x="118" y="{top}" text-anchor="end">{name}</text>')
            parts.append(f'<rect x="126" y="{top - 13}" width="{width}" height="16" fill="{fill}"/>')
            parts.append(f'<text x="{132 + width}" y="{top}">{form(value)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{top + 16}" '
        f'font-family="sans-serif" font-size="14">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
