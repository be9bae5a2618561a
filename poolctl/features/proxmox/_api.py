"""A client of the Proxmox VE API: each request opens a connection, and answers are converted to Python objects.

Error messages and representations never contain the token. https://pve.proxmox.com/pve-docs/api-viewer/
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from poolctl import __version__
from poolctl.daemon_threads import in_daemon_thread
from poolctl.http.http_client import exchange
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table

from .table import ProxmoxTable, is_token

# Enough for several thousand machines.
MAX_BYTES = 2 * 1024 * 1024
_MAX_TOKEN_BYTES = 4096
_MAX_TEXT_LENGTH = 200
_API_ROOT = "/api2/json"
_DEFAULT_PORT = 8006
LXC, QEMU = "lxc", "qemu"
RUNNING, STOPPED = "running", "stopped"


class ApiError(Exception):
    """A request to the API failed: no answer, an error, or an unusable answer. `status` is the HTTP status, else 0."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Node(NamedTuple):
    """A machine that runs Proxmox VE."""

    name: str
    addresses: frozenset[str] = frozenset()


class Guest(NamedTuple):
    """A container or a virtual machine."""

    kind: str
    vmid: int
    name: str
    node: str
    status: str
    addresses: frozenset[str] = frozenset()

    @property
    def path(self) -> str:
        """The guest's path in the API."""
        return f"/nodes/{quote(self.node, safe='')}/{self.kind}/{self.vmid}"

    @property
    def title(self) -> str:
        """The guest's name for display."""
        kind_text = "container" if self.kind == LXC else "virtual machine"
        return f"{kind_text} {self.vmid}{f' ({self.name})' if self.name else ''} on {self.node}"


class ProxmoxApi:
    """A client of the Proxmox VE API, set up by `table`. If `token_env` is set, `environment` has the API token."""

    def __init__(self, table: ProxmoxTable, environment: Mapping[str, str]) -> None:
        parts = urlsplit(table.url)
        self.host = parts.hostname or ""
        self._address = self.host, parts.port or _DEFAULT_PORT
        self._host_header = parts.netloc
        self._table = table
        self._environment = environment
        self._secrets: tuple[str, ssl.SSLContext] | None = None

    def __repr__(self) -> str:
        return f"<ProxmoxApi {self.host}>"

    async def nodes(self) -> list[Node]:
        """The nodes of the cluster, with their addresses if the token permits reading them."""
        nodes = {
            str(row["node"]): Node(str(row["node"]))
            for row in _rows_with_string_at(await self._get("/nodes"), "node")
        }
        try:
            status = await self._get("/cluster/status")
        except ApiError as error:
            if error.status != 403:
                raise
            status = []
        for row in _rows_with_string_at(status, "name"):
            if row.get("type") == "node" and row["name"] in nodes:
                nodes[row["name"]] = Node(row["name"], frozenset(_identifying_addresses([row.get("ip")])))
        return list(nodes.values())

    async def guests(self) -> list[Guest]:
        """The containers and virtual machines of all nodes, without their addresses."""
        return [
            Guest(row["type"], row["vmid"], str(row.get("name") or ""), row["node"], str(row.get("status")))
            for row in _rows_with_string_at(await self._get("/cluster/resources?type=vm"), "node")
            if row.get("type") in (LXC, QEMU) and isinstance(row.get("vmid"), int) and not row.get("template")
        ]

    async def addresses(self, guest: Guest) -> frozenset[str]:
        """The addresses of the guest's interfaces while it runs, else the static addresses in its configuration."""
        if guest.status != RUNNING:
            return configured_addresses(await self._get(f"{guest.path}/config"))
        if guest.kind == LXC:
            return interface_addresses(await self._get(f"{guest.path}/interfaces"))
        answer = await self._get(f"{guest.path}/agent/network-get-interfaces")
        return interface_addresses(answer.get("result") if isinstance(answer, dict) else None)

    async def status(self, guest: Guest) -> str:
        """The guest's current state, such as "running" or "stopped"."""
        return (await self.status_and_uptime(guest))[0]

    async def status_and_uptime(self, guest: Guest) -> tuple[str, float | None]:
        """The guest's state and uptime in seconds; None for an unknown uptime."""
        answer = await self._get(f"{guest.path}/status/current")
        if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
            raise ApiError(f"{self.host}: its answer has no status of the {guest.title}", 200)
        uptime = answer.get("uptime")
        return str(answer["status"]), float(uptime) if isinstance(uptime, (int, float)) else None

    async def begin_task(self, guest: Guest, what: str) -> str:
        """Begin the task `what`, "start" or "shutdown", and return its name; "" if unknown."""
        task = await self._ask("POST", f"{guest.path}/status/{what}")
        return task if isinstance(task, str) else ""

    async def task_failure(self, guest: Guest, task: str) -> str:
        """Why this task has failed; "" if it is running or succeeded."""
        answer = await self._get(f"/nodes/{quote(guest.node, safe='')}/tasks/{quote(task, safe='')}/status")
        if not isinstance(answer, dict) or answer.get("status") != STOPPED:
            return ""
        result = str(answer.get("exitstatus", ""))
        return (
            "" if result == "OK" or result.startswith("WARNINGS") else _short(result) or "no reason was given"
        )

    async def _get(self, path: str) -> Any:
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str) -> Any:
        """Send a request to the API; returns the member `data` of the JSON in the answer. Raises ApiError."""
        try:
            async with asyncio.timeout(self._table.timeout):
                if self._secrets is None:
                    self._secrets = await in_daemon_thread(self._read_secrets)
                token, tls = self._secrets
                return await self._send_request(method, path, token, tls)
        except TimeoutError:
            raise ApiError(f"{self.host}: no answer within {self._table.timeout:g} s") from None
        except BadMessage:
            raise ApiError(f"{self.host}: what it answers is not HTTP") from None
        except ssl.SSLCertVerificationError as error:
            message = f"{self.host}: its certificate is not trusted: {error.verify_message}"
            raise ApiError(message) from None
        except OSError as error:
            raise ApiError(f"{self.host}: {_reason(error)}") from None
        except ValueError:
            raise ApiError(f"{self.host}: the request cannot be written") from None

    async def _send_request(self, method: str, path: str, token: str, tls: ssl.SSLContext) -> Any:
        fields = {
            "host": self._host_header,
            "user-agent": f"poolctl/{__version__}",
            "accept": "application/json",
            "authorization": f"PVEAPIToken={token}",
            "connection": "close",
        }
        if method == "POST":
            fields["content-length"] = "0"
        body = bytearray()
        async with exchange(self._address, method, _API_ROOT + path, fields.items(), tls=tls) as response:
            if response.status != 200:
                if response.status == 401:
                    self._secrets = None  # read the token again
                # The API gives its reasons in the status line.
                reason = _short(response.head.reason.decode("latin-1").replace(token, "…"))
                raise ApiError(f"{self.host} answered {response.status} {reason}".rstrip(), response.status)
            async for chunk in response.body():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ApiError(f"{self.host}: its answer is larger than {MAX_BYTES} bytes", 200)
        try:
            return json.loads(body)["data"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise ApiError(f"{self.host}: what it answers is not JSON of Proxmox VE", 200) from None

    def _read_secrets(self) -> tuple[str, ssl.SSLContext]:
        """The token and the certificates. Raises ApiError; blocks on the disk."""
        table = self._table
        if table.token_env:
            source, token = (
                f"the environment variable {table.token_env}",
                self._environment.get(table.token_env, ""),
            )
        else:
            source = str(table.token_file)
            try:
                with open(source, encoding="utf-8") as file:
                    token = file.read(_MAX_TOKEN_BYTES)
            except (OSError, UnicodeDecodeError) as error:
                raise ApiError(f"token_file: {_reason(error)}") from None
        token = token.strip()
        if not is_token(token):
            raise ApiError(f"there is no API token in {source}")
        try:
            tls = ssl.create_default_context(cafile=None if table.verify is True else str(table.verify))
        except OSError as error:
            raise ApiError(f"verify: {_reason(error)}") from None
        if table.verify is not True:
            # The CA of Proxmox VE lacks extensions that Python 3.13 requires by default.
            tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return token, tls


def interface_addresses(interfaces: Any) -> frozenset[str]:
    """The addresses in the API's list of network interfaces (from a container or a guest agent)."""
    texts: list[object] = []
    for interface in _rows_with_string_at(interfaces or [], "name"):
        texts += [interface.get("inet"), interface.get("inet6")]
        listed = interface.get("ip-addresses")
        texts += [entry.get("ip-address") for entry in _dicts(listed if isinstance(listed, list) else [])]
    return frozenset(_identifying_addresses(texts))


def configured_addresses(config: Any) -> frozenset[str]:
    """The fixed addresses: in net0, net1, … of a container, in ipconfig0, … of a virtual machine with cloud-init."""
    texts: list[object] = []
    for key, value in config.items() if isinstance(config, dict) else ():
        if str(key).rstrip("0123456789") in ("net", "ipconfig") and isinstance(value, str):
            options = dict(part.partition("=")[::2] for part in value.split(","))
            texts += [options.get("ip"), options.get("ip6")]
    return frozenset(_identifying_addresses(texts))


def _identifying_addresses(texts: list[object]) -> list[str]:
    """The addresses that identify a machine, in canonical form; every machine has loopback addresses."""
    addresses = []
    for text in texts:
        try:
            address = ip_address(str(text).partition("/")[0].partition("%")[0])
        except ValueError:
            continue  # "dhcp", "auto", or no address at all
        if not (address.is_loopback or address.is_link_local or address.is_unspecified):
            addresses.append(str(address))
    return addresses


def _rows_with_string_at(data: Any, key: str) -> list[Table]:
    """The objects in the list `data` whose value of `key` is a string. Raises ApiError if `data` is not a list."""
    if not isinstance(data, list):
        raise ApiError("its answer has another form than that of Proxmox VE", 200)
    return [row for row in _dicts(data) if isinstance(row.get(key), str)]


def _dicts(values: list[Any]) -> list[Table]:
    return [value for value in values if isinstance(value, dict)]


def _short(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:_MAX_TEXT_LENGTH]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError) and error.errno > 0:
        return os.strerror(error.errno)
    return _short(str(getattr(error, "strerror", None) or error or type(error).__name__))
