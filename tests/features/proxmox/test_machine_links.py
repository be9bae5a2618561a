"""Which machine is behind a target of a route."""

from __future__ import annotations

import pytest

from poolctl.features.proxmox._api import (
    Guest,
    Node,
    configured_addresses,
    interface_addresses,
)
from poolctl.features.proxmox._machine_links import Inventory, has_addresses, host_of, links_of
from poolctl.routing.route import Route, StreamRoute, Target

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


def test_targets_of_routes_are_linked_by_alias_and_url() -> None:
    routes = [
        Route(alias="pve1", to=(Target(url="https://pve1:8006"),)),
        Route(alias="web", to=(Target(url="http://127.0.0.1:9000"),)),
        Route(alias="win.lan", to=(Target(url="http://10.0.1.1:80"), Target(url="http://nowhere"))),
        Route(alias="own", to=(Target(server="web"), Target(url="unix:/run/web"))),
        StreamRoute(alias="db", bind=":1", to=(Target(url="[10.0.1.3]:5432"), Target(url="10.0.1.3:5432"))),
    ]
    found = {key: link.identity for key, link in links_of(routes, INVENTORY).items()}
    assert found == {
        ("pve1", "https://pve1:8006"): ("pve1", 0),
        ("web", "http://127.0.0.1:9000"): ("", 101),
        ("win.lan", "http://10.0.1.1:80"): ("", 101),
        ("db", "10.0.1.3:5432"): ("", 200),
    }


def test_addresses_are_needed_only_for_targets_that_are_one() -> None:
    def needed(*urls: str) -> bool:
        return has_addresses([Route(alias="a", to=tuple(Target(url=url) for url in urls))])

    assert needed("http://web", "http://10.0.1.1:80")
    assert needed("http://[fd00::2]:80")
    assert not needed("http://web:80", "http://127.0.0.1:80", "unix:/run/web", "http://[::1]:80")
    assert not has_addresses([Route(alias="a", to=(Target(server="web"),))])


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
