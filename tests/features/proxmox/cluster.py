"""A local HTTPS stand-in of a Proxmox VE cluster's API, with answers of the form that the real one gives."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

from poolctl.features.gateway.supervision.outside_targets import Activity
from poolctl.features.proxmox.inventory import ProxmoxInventory
from poolctl.features.proxmox.table import ProxmoxTable
from tests.asyncio_server import hang_up, start_server
from tests.virtual_loop import VirtualLoop

SECRET = "3d7a4b4e-51cb-4a2e-9c6d-000000000001"
TOKEN = f"pool@pve!routes={SECRET}"
ENVIRONMENT = {"PVE_TOKEN": TOKEN}
UPID = "UPID:pve1:0000C530:001C9BEC:59B5A0E5:vzstart:101:pool@pve!routes:"


class Cluster:
    """Nodes `pve1` and `pve2`, a container "web" (101, stopped), one "db" (102) and a virtual machine "win" (200).

    `answers` overrule paths: (status, reason), raw bytes, or None for no answer. `asked` are the requests that came.
    `fails` is why starts and stops fail; those that are begun end when `may_start`, and `may_stop`, is set.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self.cert = cert
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        self.nodes = {"pve1": "10.0.0.1", "pve2": "10.0.0.2"}
        self.guests: dict[int, dict[str, Any]] = {
            101: _guest("lxc", "pve1", "web", "stopped"),
            102: _guest("lxc", "pve1", "db", "running"),
            200: _guest("qemu", "pve2", "win", "running"),
        }
        self.addresses = {102: ["10.0.1.2"], 200: ["10.0.1.3", "fd00::3"]}
        self.configs: dict[int, dict[str, str]] = {
            101: {
                "net0": "name=eth0,bridge=vmbr0,gw=10.0.1.254,hwaddr=BC:24:11:00:00:01,ip=10.0.1.1/24,type=veth"
            }
        }
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.fails = ""
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.connections = 0
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Cluster:
        self._server = await start_server(self._connected, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def aclose(self) -> None:
        await hang_up(self._server)

    def table(self, **keys: Any) -> ProxmoxTable:
        """The table [proxmox] for it."""
        given = {"url": f"https://localhost:{self.port}", "verify": str(self.cert), "token_env": "PVE_TOKEN"}
        return ProxmoxTable(**{**given, "timeout": 30.0, **keys})

    def starts(self) -> list[str]:
        return [each for each in self.asked if each.startswith("POST") and each.endswith("/start")]

    def stops(self) -> list[str]:
        return [each for each in self.asked if each.startswith("POST") and each.endswith("/shutdown")]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, OSError):  # clients disconnect at any time
            await self._start_response(reader, writer)
            writer.close()
            await writer.wait_closed()
        self.connections -= 1

    async def _start_response(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.split("\r\n")
        method, target, _ = line.split()
        path = unquote(target.removeprefix("/api2/json"))
        self.asked.append(f"{method} {path}")
        status, reason, body = 401, "invalid token value!", b""
        if f"authorization: PVEAPIToken={TOKEN}" in fields:
            status, reason, body = await self._answer(method, path)
        if method == "POST" and "content-length: 0" not in fields:
            status, reason = 411, "Length Required"
        head = (
            f"HTTP/1.1 {status} {reason}\r\nServer: pve-api-daemon/3.0\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()

    async def _answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        for prefix, answer in list(self.answers.items()):
            if path.startswith(prefix):
                if answer is None:
                    await asyncio.Event().wait()
                return (200, "OK", answer) if isinstance(answer, bytes) else (*answer, b'{"data":null}')
        data = self._data(method, path)
        if isinstance(data, tuple):
            return *data, b'{"data":null}'
        return 200, "OK", json.dumps({"data": data}).encode()

    def _data(self, method: str, path: str) -> Any:
        if path == "/nodes":
            return [
                {
                    "node": name,
                    "status": "online",
                    "id": f"node/{name}",
                    "type": "node",
                    "ssl_fingerprint": "A1",
                }
                for name in self.nodes
            ]
        if path == "/cluster/status":
            cluster = {
                "type": "cluster",
                "id": "cluster",
                "name": "lab",
                "nodes": 2,
                "quorate": 1,
                "version": 7,
            }
            return [
                cluster,
                *(
                    {
                        "type": "node",
                        "id": f"node/{name}",
                        "name": name,
                        "ip": ip,
                        "online": 1,
                        "local": 1,
                        "nodeid": 1,
                    }
                    for name, ip in self.nodes.items()
                ),
            ]
        if path == "/cluster/resources?type=vm":
            return [
                {
                    "id": f"{each['type']}/{vmid}",
                    "vmid": vmid,
                    **each,
                    "uptime": 5,
                    "maxmem": 2**29,
                    "template": 0,
                }
                for vmid, each in self.guests.items()
            ]
        if "/tasks/" in path:
            found = {"upid": UPID, "type": "vzstart", "id": "101", "user": "pool@pve", "node": "pve1"}
            return (
                {**found, "status": "stopped", "exitstatus": self.fails}
                if self.fails
                else {**found, "status": "running"}
            )
        _, _, node, kind, number, *rest = path.split("/")
        return self._of_guest(method, node, kind, int(number), "/".join(rest))

    def _of_guest(self, method: str, node: str, kind: str, vmid: int, what: str) -> Any:
        guest = self.guests.get(vmid)
        if guest is None or (guest["node"], guest["type"]) != (node, kind):
            return 500, f"Configuration file 'nodes/{node}/{kind}/{vmid}.conf' does not exist"
        if what == "status/current":
            more = {"uptime": guest["uptime"]} if "uptime" in guest else {}
            return {
                "vmid": vmid,
                "name": guest["name"],
                "status": guest["status"],
                "ha": {"managed": 0},
                **more,
            }
        if what == "status/shutdown":
            if not self.fails:
                self._tasks.add(asyncio.ensure_future(self._stop(guest)))
            return UPID
        if what == "status/start":
            if guest["status"] == "running":
                return 500, f"CT {vmid} already running"
            if not self.fails:
                self._tasks.add(asyncio.ensure_future(self._run(guest)))
            return UPID
        if what == "config":
            return {"arch": "amd64", "hostname": guest["name"], "digest": "d5", **self.configs.get(vmid, {})}
        addresses = self.addresses.get(vmid, [])
        if kind == "lxc":
            own = {
                "name": "eth0",
                "hwaddr": "bc:24:11:00:00:02",
                "inet": f"{addresses[0]}/24" if addresses else None,
            }
            return [
                {"name": "lo", "hwaddr": "00:00:00:00:00:00", "inet": "127.0.0.1/8", "inet6": "::1/128"},
                own,
            ]
        if not addresses:
            return 500, "No QEMU guest agent configured"
        listed = [{"ip-address": each, "ip-address-type": "ipv4", "prefix": 24} for each in addresses]
        loopback = {
            "name": "lo",
            "ip-addresses": [{"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8}],
        }
        return {
            "result": [
                loopback,
                {"name": "eth0", "hardware-address": "bc:24:11:00:00:03", "ip-addresses": listed},
            ]
        }

    async def _stop(self, guest: dict[str, Any]) -> None:
        await self.may_stop.wait()
        guest["status"] = "stopped"

    async def _run(self, guest: dict[str, Any]) -> None:
        await self.may_start.wait()
        guest["status"] = "running"


def _guest(kind: str, node: str, name: str, status: str) -> dict[str, Any]:
    return {"type": kind, "node": node, "name": name, "status": status}


class HasInventory(Protocol):
    """What a test plays with, made of a cluster and a state directory."""

    inventory: ProxmoxInventory


Stage = TypeVar("Stage", bound=HasInventory)


def play_with(
    pair: tuple[Path, Path],
    make: Callable[[Cluster, str], Stage],
    steps: Callable[[Stage], Coroutine[Any, Any, None]],
) -> None:
    """Run the steps in virtual time, with a cluster with this certificate and key, and an empty state directory."""

    async def run(state_directory: str) -> None:
        cluster = await Cluster(*pair).start()
        stage = make(cluster, state_directory)
        try:
            await steps(stage)
        finally:
            stage.inventory.close()
            await cluster.aclose()

    with tempfile.TemporaryDirectory() as state_directory, closing(VirtualLoop()) as loop:
        loop.run_until_complete(run(state_directory))


async def no_activities() -> Mapping[str, Activity] | None:
    """The answer of a gateway whose activity is not known."""
    return None
