"""The sequence of steps: a pure function of the seed, independent of the pool."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SERVERS = (
    "plain",
    "several",
    "long",
    "unix",
    "tls",
    "noisy",
    "sleepy",
)  # under load; `moving` is stopped and started, `hostile` attacks
# Out of rotation every answer closes its connection: requests pipelined behind it have to be sent again.
SERVERS_TO_DRAIN = tuple(name for name in SERVERS if name != "several")
CHANGES = ("env", "tags", "add", "remove", "broken", "nothing")
MAX_WORKERS = 4
ATTACKS = ("flood", "forge", "block", "stuff", "count")
_HELPERS = ("worker", "logger", "zygote", "app zygote")
_PAUSES_MS = (0, 20, 200, 600, 1500)
ROUND_STEPS = 30
# Per round of about a minute: a supervisor that dies more often is restarted with delays of up to 30 s.
MAX_SUPERVISORS = 4


@dataclass(frozen=True)
class Step:
    """One action on the pool. `what` is a function of `steps`."""

    number: int
    what: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def supervisors(self) -> int:
        """The number of supervisors that end in this step, with their keepers."""
        named = [
            self.what,
            self.options.get("role"),
            self.options.get("then"),
            *self.options.get("roles", ()),
            *(role for role, _, _ in self.options.get("deaths", ())),
        ]
        return sum(
            each in ("supervisor", "keeper", "kill_both", "upgrade", "freeze_supervisor") for each in named
        )

    def __str__(self) -> str:
        words = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.number:4} {self.what} {words}".rstrip()


def rounds(seed: int, roles: tuple[str, ...], verbs: tuple[str, ...]) -> Iterator[list[Step]]:
    """The program in parts, each for a fresh pool."""
    steps = program(seed, roles, verbs)
    ahead = next(steps)
    while True:
        part: list[Step] = []
        deaths = 0
        while len(part) < ROUND_STEPS and (deaths := deaths + ahead.supervisors) <= MAX_SUPERVISORS:
            part.append(ahead)
            ahead = next(steps)
        yield part


def program(seed: int, roles: tuple[str, ...], verbs: tuple[str, ...]) -> Iterator[Step]:
    """An endless sequence of steps. `roles` may be killed; `verbs` may be used besides start, stop and restart."""
    chance = random.Random(seed)
    kinds = {
        "kill": 6,
        "kill_during": 6,
        "restart": 4,
        "storm": 2,
        "stop_start": 2,
        "flood": 2,
        "full_disk": 2,
        "vanish": 1,
        "freeze": 1,
        "in_silence": 4,
        "freeze_idle": 1,
        "freeze_keeper": 1,
        "freeze_supervisor": 1,
        "pause": 1,
        "attack": 3,
    }
    kinds |= {name: 4 for name in ("reload", "scale", "upgrade") if name in verbs}
    kinds |= {name: 1 for name in ("drain", "disable", "kill_both") if name in verbs}
    number = 0
    while True:
        number += 1
        what = chance.choices(list(kinds), list(kinds.values()))[0]
        yield Step(number, what, _options(what, chance, roles, verbs))


def _options(
    what: str, chance: random.Random, roles: tuple[str, ...], verbs: tuple[str, ...]
) -> dict[str, Any]:
    match what:
        case "kill":
            return _victim(chance, roles)
        case "kill_during":
            operations = ["restart", *({"reload", "scale", "upgrade"} & set(verbs))]
            operation = chance.choice(sorted(operations))
            return {
                "operation": operation,
                **_operation(operation, chance),
                **_victim(chance, roles),
                "after_ms": chance.choice((0, 5, 20, 50, 100, 200, 400)),
            }
        case "storm":
            # Killing keeper and supervisor at once has its own step, `kill_both`.
            both = chance.choice(("keeper", "supervisor"))
            possible = [role for role in roles if role != both]
            victims = chance.sample(possible, min(len(possible), chance.randint(2, 3)))
            return {"roles": tuple(sorted(victims)), "server": chance.choice(SERVERS)}
        case "in_silence":
            # Two supervisors and a worker between them, and further roles up to the limit.
            between = [(chance.choice(_HELPERS), chance.choice(SERVERS)) for _ in range(chance.randint(0, 2))]
            first, last = (chance.choice(("keeper", "supervisor")) for _ in range(2))
            deaths = [(first, ""), ("worker", chance.choice(SERVERS)), *between, (last, "")]
            return {"deaths": tuple((*death, chance.choice(_PAUSES_MS)) for death in deaths)}
        case "freeze_keeper":
            return {"server": chance.choice(SERVERS)}
        case "attack":
            return {"deed": chance.choice(ATTACKS)}
        case "pause":
            return {"seconds": chance.choice((0.5, 2.0, 11.0))}
        case "flood":
            return {
                "server": chance.choice(("plain", "several", "moving")),
                "connections": chance.randint(50, 400),
            }
        case "full_disk":
            return {"then": chance.choice(("nothing", "restart", *roles)), "server": chance.choice(SERVERS)}
        case "restart" | "reload" | "scale" | "upgrade":
            return _operation(what, chance)
        case "drain" | "disable":
            return {"server": chance.choice(SERVERS_TO_DRAIN) if what == "drain" else "moving"}
        case _:
            return {}


def _operation(operation: str, chance: random.Random) -> dict[str, Any]:
    if operation == "restart":
        return {"server": chance.choice(("all", *SERVERS))}
    if operation == "reload":
        return {"change": chance.choice(CHANGES), "server": chance.choice(SERVERS)}
    if operation == "upgrade":
        return {}
    return {"workers": chance.randint(1, MAX_WORKERS)}


def _victim(chance: random.Random, roles: tuple[str, ...]) -> dict[str, Any]:
    return {
        "role": chance.choice(roles),
        "victim": chance.choice(SERVERS),
        "index": chance.randrange(MAX_WORKERS),
    }
