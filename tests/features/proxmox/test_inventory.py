"""The inventory of a Proxmox VE cluster: links that follow it, and what an API that is away changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.features.proxmox._api import (
    Guest,
    Node,
    configured_addresses,
    interface_addresses,
)
from poolctl.features.proxmox.inventory import (
    Inventory,
    Machines,
    ProxmoxInventory,
    has_ip_targets,
    host_of,
    links_by_target,
)
from poolctl.features.proxmox.table import ProxmoxTable
from poolctl.json_form import to_json
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import JournalEvent
from poolctl.routing.route import Route, StreamRoute, Target
from tests.certificates import certificate
from tests.coroutines import staged_by
from tests.features.proxmox.cluster import ENVIRONMENT, SECRET, Cluster, no_activities, play_with
from tests.manual_clock import ManualClock
from tests.unit.supervisor.desk import part_context

LONG = 3600.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("pve"))


class Stage:
    """An inventory of the stand-in. It is read when a test asks for it."""

    def __init__(self, cluster: Cluster, state_directory: str) -> None:
        self.cluster = cluster
        self.recorded: list[JournalEvent] = []
        self.events = EventBus(Clock())
        self.events.subscribe(self.recorded.append)
        self.clock = ManualClock(LONG)
        self.changes = 0
        self.inventory = ProxmoxInventory(
            self.events, self._changed, no_activities, state_directory, self.clock
        )

    def _changed(self) -> None:
        self.changes += 1

    async def read(self, table: ProxmoxTable | None = None) -> None:
        """Return once it was read again, with or without success."""
        inventory = self.inventory
        inventory.apply_table(table or self.cluster.table(refresh=LONG), ENVIRONMENT)
        before, problem = self.changes, inventory.problem
        while self.changes == before and inventory.problem == problem:
            await asyncio.sleep(0.001)

    def links(self) -> dict[str, tuple[str, int]]:
        return {alias: link.identity for (alias, _), link in self.inventory.links.items()}

    def happened(self) -> list[tuple[str, str]]:
        """The events since the last time."""
        self.events.flush()
        found = [(each.event, each.message) for each in self.recorded]
        assert SECRET not in repr(self.recorded)
        self.recorded.clear()
        return found


@pytest.fixture
def play(pair: tuple[Path, Path]) -> Callable[..., None]:
    return partial(play_with, pair, Stage)


def to(alias: str, *urls: str) -> Route:
    return Route(alias=alias, to=tuple(Target(url=url) for url in urls))


@staged_by("play")
async def test_routes_are_linked_when_the_inventory_is_read_and_when_they_change(stage: Stage, /) -> None:
    web = to("web", "http://elsewhere:9000")
    stage.inventory.set_routes([web, to("ui", "https://pve1:8006"), to("none", "http://none")])
    assert stage.links() == {}
    await stage.read()
    assert stage.links() == {"web": ("", 101), "ui": ("pve1", 0)}
    stage.events.flush()
    assert [each.detail for each in stage.recorded] == [
        {"route": "web", "to": "http://elsewhere:9000", "node": "pve1", "vmid": 101, "name": "web"},
        {"route": "ui", "to": "https://pve1:8006", "node": "pve1", "vmid": 0, "name": "pve1"},
    ]
    assert stage.happened() == [
        ("route linked", "web (http://elsewhere:9000): container 101 (web) on pve1"),
        ("route linked", "ui (https://pve1:8006): node pve1"),
    ]
    # Names suffice: no machine was asked for its addresses.
    assert [each for each in stage.cluster.asked if "/lxc/" in each or "/qemu/" in each] == []

    stage.inventory.set_routes([web, to("win", "http://win")])
    assert stage.links() == {"web": ("", 101), "win": ("", 200)}
    assert stage.happened() == [("route linked", "win (http://win): virtual machine 200 (win) on pve2")]

    # Migrated, and removed.
    stage.cluster.guests[101]["node"] = "pve2"
    del stage.cluster.guests[200]
    await stage.read()
    assert stage.links() == {"web": ("", 101)}
    assert stage.happened() == [
        ("route linked", "web (http://elsewhere:9000): container 101 (web) on pve2"),
        ("route unlinked", "win (http://win): virtual machine 200 (win) on pve2"),
    ]


@staged_by("play")
async def test_machines_of_a_route_are_reported_with_the_state_that_was_read_last(stage: Stage, /) -> None:
    urls = ("http://win", "http://none", "http://web:1", "http://web:2", "http://pve1", "http://win")
    route = Route(alias="all", to=(Target(server="web"), *(Target(url=url) for url in urls)))
    stage.inventory.set_routes([route])
    await stage.read()
    stage.cluster.guests[101]["status"] = "running"
    await stage.read()
    web = {"kind": "lxc", "node": "pve1", "vmid": 101, "name": "web", "state": "running"}
    assert [to_json(each) for each in stage.inventory.machines(route)] == [
        {
            "to": "http://win",
            "kind": "qemu",
            "node": "pve2",
            "vmid": 200,
            "name": "win",
            "state": "running",
        },
        {"to": "http://web:1", **web},
        {"to": "http://web:2", **web},
        {"to": "http://pve1", "kind": "node", "node": "pve1", "vmid": 0, "name": "pve1", "state": ""},
    ]
    assert [str(each) for each in stage.inventory.machines(route)][2:] == [
        "pve1/101 web (running)",
        "pve1",
    ]


@staged_by("play")
async def test_state_of_a_started_machine_is_newer_than_the_inventory(stage: Stage, /) -> None:
    stage.inventory.set_routes([to("web", "http://web")])
    await stage.read()
    assert stage.inventory.states["http://web"].state == "stopped"
    stage.inventory.start_machine("http://web")
    while stage.inventory.states["http://web"].state != "running":
        await asyncio.sleep(0.001)
    stage.inventory.set_routes([to("web", "http://web"), to("win", "http://win")])
    assert {url: each.state for url, each in stage.inventory.states.items()} == {
        "http://web": "running", "http://win": "running",
    }  # fmt: skip


@staged_by("play")
async def test_first_target_that_is_an_address_has_the_machines_asked_at_once(stage: Stage, /) -> None:
    stage.inventory.set_routes([to("web", "http://web")])
    await stage.read()
    assert stage.links() == {"web": ("", 101)}
    stage.cluster.asked.clear()
    stage.inventory.set_routes([to("ui", "http://pve1")])
    stage.inventory.set_routes([to("a", "http://10.0.1.2")])
    while not stage.links():
        await asyncio.sleep(0.001)
    stage.inventory.set_routes([to("a", "http://10.0.1.2"), to("b", "http://10.0.1.3")])
    assert stage.links() == {"a": ("", 102), "b": ("", 200)}
    await asyncio.sleep(1)  # time for another reading to begin
    assert stage.cluster.asked.count("GET /nodes") == 1


@staged_by("play")
async def test_other_nodes_than_those_of_the_table_are_left_out(stage: Stage, /) -> None:
    stage.inventory.set_routes([to("a", "http://pve1"), to("b", "http://db"), to("c", "http://win")])
    await stage.read(stage.cluster.table(nodes=("pve2",), refresh=LONG))
    assert stage.links() == {"c": ("", 200)}


@staged_by("play")
async def test_targets_that_are_addresses_are_linked_also_while_the_machine_is_stopped(
    stage: Stage, /
) -> None:
    cluster = stage.cluster
    stage.inventory.set_routes([to(ip, f"http://{ip}:80") for ip in ("10.0.1.1", "10.0.1.2", "10.0.0.2")])
    await stage.read()
    linked = {"10.0.1.1": ("", 101), "10.0.1.2": ("", 102), "10.0.0.2": ("pve2", 0)}
    assert stage.links() == linked
    # Addresses by DHCP are remembered; those of machines in the same state are not asked for again.
    cluster.guests[102]["status"] = "stopped"
    cluster.asked.clear()
    await stage.read()
    assert stage.links() == linked
    assert [each for each in cluster.asked if "/lxc/" in each or "/qemu/" in each] == [
        "GET /nodes/pve1/lxc/102/config"
    ]
    # Another machine has got the address, and then a new one.
    cluster.addresses[200] = ["10.0.1.2"]
    stage.clock.advance(LONG)
    await stage.read()
    assert stage.links() == {**linked, "10.0.1.2": ("", 200)}
    cluster.addresses[200] = ["10.0.1.4"]
    stage.clock.advance(LONG)
    await stage.read()
    assert stage.links() == linked
    # An agent that does not run is no problem.
    cluster.addresses[200] = []
    stage.clock.advance(LONG)
    await stage.read()
    assert stage.inventory.problem == ""


@pytest.mark.parametrize(
    ("path", "answer", "problem"),
    [
        ("", (401, "no such user"), "localhost answered 401 no such user"),
        ("", (500, "Internal Server Error"), "localhost answered 500 Internal Server Error"),
        ("", None, "localhost: no answer within 0.05 s"),
        ("/cluster/resources", b"garbage", "localhost: what it answers is not JSON of Proxmox VE"),
        ("/nodes/pve1/lxc", None, "localhost: no answer within 0.05 s"),
        (
            "/cluster/resources",
            b'{"data":[{"type":"lxc","vmid":102,"node":"\\ud800","status":"running"}]}',
            "localhost: the inventory could not be read; see supervisor.log",
        ),
    ],
)
@staged_by("play")
async def test_api_that_is_away_leaves_the_last_inventory_in_use(
    stage: Stage, /, caplog: pytest.LogCaptureFixture, path: str, answer: Any, problem: str
) -> None:
    stage.inventory.set_routes([to("web", "http://web"), to("db", "http://10.0.1.2")])
    await stage.read()
    links = stage.links()
    assert len(links) == 2
    stage.happened()
    stage.clock.advance(LONG)

    stage.cluster.answers[path] = answer
    await stage.read(stage.cluster.table(timeout=30.0 if answer else 0.05, refresh=0.01))
    assert (stage.links(), stage.inventory.problem) == (links, problem)
    # However often it fails: one event when it begins, and one when it is over.
    asked = len(stage.cluster.asked)
    while len(stage.cluster.asked) < asked + 3:
        await asyncio.sleep(0.001)
    assert stage.happened() == [("proxmox unavailable", f"{problem}; the last inventory stays in use")]
    stage.cluster.answers.clear()
    await stage.read()
    assert (stage.links(), stage.inventory.problem) == (links, "")
    assert stage.happened() == [("proxmox available", "localhost answers again")]
    assert caplog.messages.count(f"[proxmox]: {problem}") == 1
    written = "the inventory of localhost could not be read" in caplog.messages
    assert written == ("supervisor.log" in problem)


@staged_by("play")
async def test_other_machines_are_not_asked_for_addresses_once_one_has_not_answered(stage: Stage, /) -> None:
    cluster = stage.cluster
    cluster.guests = {vmid: {**cluster.guests[102], "name": f"m{vmid}"} for vmid in range(300, 320)}
    cluster.answers["/nodes/pve1/lxc"] = None
    stage.inventory.set_routes([to("db", "http://10.0.1.2")])
    # Within this time the nodes and the list of machines must be answered.
    await stage.read(cluster.table(timeout=3.0, refresh=LONG))
    assert stage.inventory.problem == "localhost: no answer within 3 s"
    assert 1 <= sum("/lxc/" in each for each in cluster.asked) < 10


@staged_by("play")
async def test_without_the_table_nothing_is_linked_and_nothing_read(stage: Stage, /) -> None:
    stage.inventory.set_routes([to("web", "http://web")])
    await stage.read()
    stage.inventory.apply_table(None, {})
    assert stage.links() == {}
    assert stage.happened()[-1] == ("route unlinked", "web (http://web): container 101 (web) on pve1")
    await stage.read()
    assert stage.links() == {"web": ("", 101)}


NODES = [Node("pve1", frozenset({"10.0.0.1"})), Node("pve2", frozenset({"fd00::2"}))]
GUESTS = [
    Guest("lxc", 101, "web", "pve1", "stopped", frozenset({"10.0.1.1"})),
    Guest("qemu", 200, "Win.lan", "pve2", "running", frozenset({"10.0.1.3", "172.17.0.1"})),
    Guest("lxc", 102, "twin", "pve1", "running", frozenset({"172.17.0.1"})),
    Guest("lxc", 103, "twin", "pve2", "running"),
    Guest("lxc", 104, "pve2", "pve1", "running"),
    Guest("lxc", 105, "", "pve1", "running"),
    Guest("lxc", 106, "wiki", "pve1", "running"),
    Guest("lxc", 107, "docs", "pve1", "running"),
    Guest("lxc", 108, "docs.lan", "pve1", "running"),
    Guest("lxc", 109, "10", "pve1", "running"),
]
INVENTORY = Inventory(NODES, GUESTS)


@pytest.mark.parametrize(
    ("host", "alias", "identity"),
    [
        ("pve1", "", ("pve1", 0)),
        ("PVE1.", "", ("pve1", 0)),
        ("10.0.0.1", "", ("pve1", 0)),
        ("FD00:0::2", "", ("pve2", 0)),
        ("elsewhere", "pve1", ("pve1", 0)),
        ("web", "", ("", 101)),
        ("win.LAN", "", ("", 200)),
        ("10.0.1.3", "", ("", 200)),
        ("elsewhere", "web", ("", 101)),
        ("127.0.0.1", "web", ("", 101)),
        # A node comes before a guest, whichever word names it; the host comes before the alias.
        ("pve2", "", ("pve2", 0)),
        ("web", "pve1", ("pve1", 0)),
        ("web", "win.lan", ("", 101)),
        # A name with a domain is the machine of the whole name, or else of its first label.
        ("wiki.lan", "", ("", 106)),
        ("Wiki.Home.Lan.", "", ("", 106)),
        ("docs.lan", "", ("", 108)),
        ("docs.home", "", ("", 107)),
        ("pve1.lan", "", ("pve1", 0)),
        ("elsewhere.lan", "wiki.lan", ("", 106)),
        ("elsewhere.lan", "web", ("", 101)),
        ("wiki.lan", "web", ("", 101)),
        ("twin.lan", "", None),
        ("10.0.1.31", "", None),
        ("lan.wiki", "", None),
        # What two machines share leads to neither.
        ("twin", "", None),
        ("172.17.0.1", "", None),
        ("", "", None),
        ("win", "", None),
        ("10.0.1.30", "", None),
    ],
)
def test_host_or_alias_leads_to_a_node_or_else_to_a_guest(
    host: str, alias: str, identity: tuple[str, int] | None
) -> None:
    link = INVENTORY.find(host, alias)
    assert (link and link.identity) == identity
    if link is not None:
        assert (link.guest is None) == (link.identity[1] == 0)


def test_inventory_is_shown_by_its_numbers() -> None:
    assert repr(INVENTORY) == "<Inventory: 2 nodes, 10 guests>"


def test_targets_of_routes_are_linked_by_alias_and_url() -> None:
    routes = [
        Route(alias="pve1", to=(Target(url="https://pve1:8006"),)),
        Route(alias="web", to=(Target(url="http://127.0.0.1:9000"),)),
        Route(alias="win.lan", to=(Target(url="http://10.0.1.1:80"), Target(url="http://nowhere"))),
        Route(alias="own", to=(Target(server="web"), Target(url="unix:/run/web"))),
        StreamRoute(alias="db", bind=":1", to=(Target(url="[10.0.1.3]:5432"), Target(url="10.0.1.3:5432"))),
    ]
    found = {key: link.identity for key, link in links_by_target(routes, INVENTORY).items()}
    assert found == {
        ("pve1", "https://pve1:8006"): ("pve1", 0),
        ("web", "http://127.0.0.1:9000"): ("", 101),
        ("win.lan", "http://10.0.1.1:80"): ("", 101),
        ("db", "10.0.1.3:5432"): ("", 200),
    }


def test_addresses_are_needed_only_for_targets_that_are_one() -> None:
    def needed(*urls: str) -> bool:
        return has_ip_targets([Route(alias="a", to=tuple(Target(url=url) for url in urls))])

    assert needed("http://web", "http://10.0.1.1:80")
    assert needed("http://[fd00::2]:80")
    assert not needed("http://web:80", "http://127.0.0.1:80", "unix:/run/web", "http://[::1]:80")
    assert not has_ip_targets([Route(alias="a", to=(Target(server="web"),))])


def test_host_of_what_is_no_url_is_empty() -> None:
    assert (host_of("http://[::1"), host_of("unix:/x"), host_of("web:80")) == ("", "", "web")


def test_addresses_of_a_container_are_those_of_its_interfaces_without_loopback() -> None:
    interfaces = [
        {"name": "lo", "inet": "127.0.0.1/8", "inet6": "::1/128"},
        {"name": "eth0", "inet": "10.0.1.2/24", "inet6": "fe80::1/64", "hwaddr": "bc:24:11:00:00:02"},
        {
            "name": "eth1",
            "ip-addresses": [{"ip-address": "FD00::5", "prefix": 64, "ip-address-type": "inet6"}],
        },
        {"name": "eth2", "inet": None, "ip-addresses": "nonsense"},
        "nonsense",
    ]
    assert interface_addresses(interfaces) == {"10.0.1.2", "fd00::5"}
    assert interface_addresses(None) == frozenset()


def test_addresses_of_a_stopped_guest_are_the_fixed_ones_of_its_configuration() -> None:
    container = {
        "net0": "name=eth0,bridge=vmbr0,gw=10.0.1.254,ip=10.0.1.1/24,ip6=fd00::1/64,type=veth",
        "net1": "name=eth1,bridge=vmbr1,ip=dhcp,ip6=auto",
        "nameserver": "10.0.0.53",
        "net12": 5,
    }
    assert configured_addresses(container) == {"10.0.1.1", "fd00::1"}
    machine = {"net0": "virtio=BC:24:11:00:00:03,bridge=vmbr0", "ipconfig0": "ip=10.0.1.3/24,gw=10.0.1.254"}
    assert configured_addresses(machine) == {"10.0.1.3"}
    assert configured_addresses([]) == frozenset()


async def test_machines_follow_their_table_once_the_pool_has_a_gateway(tmp_path: Path) -> None:
    found: list[ProxmoxInventory] = []
    gateway: Any = SimpleNamespace(
        update=lambda: None, fetch_activity_by_host=None, use_machine_source=found.append
    )
    configuration = SimpleNamespace(environment={})
    environment = SimpleNamespace(state_directory=str(tmp_path), configuration=configuration)
    absent: Any = None
    machines = Machines(part_context(absent, EventBus(Clock()), environment))
    (tmp_path / "started-machines.json").write_text('{"101": 1}')
    table = ProxmoxTable(url="https://127.0.0.1:1", token_env="PVE_TOKEN", refresh=LONG, idle=LONG)
    machines.apply_tables(Tables(proxmox=table))
    assert [*machines.not_served] == []
    others = asyncio.all_tasks()
    machines.connect(gateway)
    (made,) = found
    await problem_of(made)
    assert [*machines.not_served] == [f"[proxmox]: {made.problem}"]
    machines.apply_tables(Tables())
    assert [*machines.not_served] == [], "nothing is read without the table"
    machines.apply_tables(Tables(proxmox=table))
    await problem_of(made)
    await machines.stop_serving()
    await asyncio.gather(*(asyncio.all_tasks() - others), return_exceptions=True)


async def problem_of(made: ProxmoxInventory) -> None:
    while not made.problem:
        await asyncio.sleep(0.001)
