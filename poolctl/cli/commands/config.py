"""`poolctl config`: the configuration as it takes effect, files merged, defaults filled in."""

from __future__ import annotations

from typing import Any

from poolctl.cli.local import choose, described, load, servers_of
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import find_place
from poolctl.cli.request import Request
from poolctl.config.interpolate import escaped
from poolctl.config.toml_text import table_text


def perform(request: Request) -> Outcome:
    """The selected servers' configuration as TOML that can be loaded again, or as JSON."""
    place = find_place(request)
    config = load(place, allow_empty=bool(request.get("allow_empty")))
    items = choose([described(server) for server in servers_of(config, place)], request)
    settings: dict[str, Any] = config.settings.to_dict()
    outcome = Outcome(items, warnings=[str(warning) for warning in config.warnings])
    if request.output in ("", "toml"):
        outcome.text = "\n".join(
            [
                table_text("[pool]", escaped(settings)),
                *(table_text("[[server]]", escaped(item["config"])) for item in items),
            ]
        )
    elif request.output == "json":
        outcome.extra = {"pool": settings}
    return outcome
