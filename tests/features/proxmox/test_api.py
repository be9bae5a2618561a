"""The client of the API of Proxmox VE, over HTTPS to a stand-in."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.proxmox._api import ApiError, Guest, Node, ProxmoxApi
from poolctl.features.proxmox.table import ProxmoxTable
from tests.asyncio_server import listening
from tests.certificates import certificate
from tests.coroutines import staged_by
from tests.features.proxmox.cluster import ENVIRONMENT, SECRET, TOKEN, UPID, Cluster

WEB = Guest("lxc", 101, "web", "pve1", "stopped")
DB = Guest("lxc", 102, "db", "pve1", "running")
WIN = Guest("qemu", 200, "win", "pve2", "running")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("pve"))


@pytest.fixture
def play(pair: tuple[Path, Path]) -> Callable[..., None]:
    async def run(steps: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
        cluster = await Cluster(*pair).start()
        try:
            await asyncio.wait_for(steps(cluster), 60)
        finally:
            await cluster.aclose()

    return lambda steps: asyncio.run(run(steps))


async def refused(work: Coroutine[Any, Any, Any]) -> ApiError:
    """Its error, which shows the secret nowhere."""
    with pytest.raises(ApiError) as caught:
        await work
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in shown
    return caught.value


@staged_by("play")
async def test_inventory_is_read_from_what_the_api_answers(cluster: Cluster, /) -> None:
    api = ProxmoxApi(cluster.table(), ENVIRONMENT)
    nodes, guests = await api.nodes(), await api.guests()
    assert nodes == [Node("pve1", frozenset({"10.0.0.1"})), Node("pve2", frozenset({"10.0.0.2"}))]
    assert guests == [WEB, DB, WIN]
    assert await api.addresses(WEB) == {"10.0.1.1"}
    assert await api.addresses(DB) == {"10.0.1.2"}
    assert await api.addresses(WIN) == {"10.0.1.3", "fd00::3"}
    assert cluster.asked == [
        "GET /nodes",
        "GET /cluster/status",
        "GET /cluster/resources?type=vm",
        "GET /nodes/pve1/lxc/101/config",
        "GET /nodes/pve1/lxc/102/interfaces",
        "GET /nodes/pve2/qemu/200/agent/network-get-interfaces",
    ]
    assert SECRET not in repr(api)


@staged_by("play")
async def test_token_that_may_not_see_addresses_of_nodes_still_lists_them(cluster: Cluster, /) -> None:
    cluster.answers["/cluster/status"] = 403, "Permission check failed (/, Sys.Audit)"
    assert await ProxmoxApi(cluster.table(), ENVIRONMENT).nodes() == [Node("pve1"), Node("pve2")]
    cluster.answers["/cluster/status"] = 500, "broken"
    error = await refused(ProxmoxApi(cluster.table(), ENVIRONMENT).nodes())
    assert (str(error), error.status) == ("localhost answered 500 broken", 500)
    cluster.answers["/cluster/status"] = (
        b'{"data":[{"type":"cluster","name":"pve1","ip":"10.0.0.9"},{"type":"node","name":"pve2"},'
        b'{"type":"node","name":"pve9","ip":"10.0.0.9"},{"type":"node","name":"pve1","ip":"10.0.0.8"}]}'
    )
    assert await ProxmoxApi(cluster.table(), ENVIRONMENT).nodes() == [
        Node("pve1", frozenset({"10.0.0.8"})), Node("pve2"),
    ]  # fmt: skip


@staged_by("play")
async def test_container_is_started_by_a_task_whose_failure_is_reported(cluster: Cluster, /) -> None:
    api = ProxmoxApi(cluster.table(), ENVIRONMENT)
    assert await api.status(WEB) == "stopped"
    cluster.may_start.clear()
    task = await api.begin_task(WEB, "start")
    assert (task, await api.task_failure(WEB, task), await api.status(WEB)) == (UPID, "", "stopped")
    cluster.fails = "startup for container '101' failed"
    assert await api.task_failure(WEB, task) == cluster.fails
    for text, reason in (
        ("WARNINGS: 1", ""), ("OK", ""), ("OK not", "OK not"), ("\n", "no reason was given"),
        (f"a\n{'x' * 300}", f"a{'x' * 300}"[:200]),
    ):  # fmt: skip
        cluster.fails = text
        assert await api.task_failure(WEB, task) == reason
    error = await refused(api.begin_task(DB, "start"))
    assert (str(error), error.status) == ("localhost answered 500 CT 102 already running", 500)
    assert cluster.starts() == [
        "POST /nodes/pve1/lxc/101/status/start",
        "POST /nodes/pve1/lxc/102/status/start",
    ]


@pytest.mark.parametrize(
    ("answer", "message", "status"),
    [
        ((500, f"broken {TOKEN}"), "localhost answered 500 broken …", 500),
        ((595, "No route to host"), "localhost answered 595 No route to host", 595),
        ((302, ""), "localhost answered 302", 302),
        (("none", ""), "localhost: what it answers is not HTTP", 0),
        (b"<html>", "localhost: what it answers is not JSON of Proxmox VE", 200),
        (b"[]", "localhost: what it answers is not JSON of Proxmox VE", 200),
        (b'{"data":', "localhost: what it answers is not JSON of Proxmox VE", 200),
        (b"[" * 100_000, "localhost: what it answers is not JSON of Proxmox VE", 200),
        (b'{"data":{"a":1}}', "its answer has another form than that of Proxmox VE", 200),
        pytest.param(
            b'{"data":"' + b"x" * 2**21 + b'"}',
            "localhost: its answer is larger than 2097152 bytes",
            200,
            id="large",
        ),
    ],
)
@staged_by("play")
async def test_answer_that_is_of_no_use_is_an_error(
    cluster: Cluster, /, answer: Any, message: str, status: int
) -> None:
    cluster.answers["/cluster/resources"] = answer
    error = await refused(ProxmoxApi(cluster.table(), ENVIRONMENT).guests())
    assert (str(error), error.status) == (message, status)


@staged_by("play")
async def test_entries_of_another_form_are_left_out(cluster: Cluster, /) -> None:
    cluster.answers["/cluster/resources"] = (
        b'{"data":[1,{"type":"lxc"},{"type":"lxc","vmid":"7","node":"a"},{"type":"sdn","vmid":7,"node":"a"},'
        b'{"type":"qemu","vmid":9,"node":"a","status":"stopped","template":1},'
        b'{"type":"lxc","vmid":8,"node":"a","status":"unknown"}]}'
    )
    found = await ProxmoxApi(cluster.table(), ENVIRONMENT).guests()
    assert found == [Guest("lxc", 8, "", "a", "unknown")]


@staged_by("play")
async def test_silent_api_and_wrong_tokens_are_errors_without_the_token(
    cluster: Cluster, /, tmp_path: Path
) -> None:
    cluster.answers["/nodes"] = None
    error = await refused(ProxmoxApi(cluster.table(timeout=0.05), ENVIRONMENT).nodes())
    assert (str(error), error.status) == ("localhost: no answer within 0.05 s", 0)
    cluster.answers.clear()

    error = await refused(ProxmoxApi(cluster.table(), {"PVE_TOKEN": f"a@b!c={SECRET}x"}).nodes())
    assert (str(error), error.status) == ("localhost answered 401 invalid token value!", 401)
    for environment in ({}, {"PVE_TOKEN": SECRET}, {"PVE_TOKEN": f"{TOKEN}\r\nX: y"}):
        error = await refused(ProxmoxApi(cluster.table(), environment).nodes())
        assert str(error) == "there is no API token in the environment variable PVE_TOKEN"

    # A file may be written again while the pool runs.
    file = tmp_path / "token"
    api = ProxmoxApi(cluster.table(token_env=None, token_file=str(file)), {})
    assert str(await refused(api.nodes())) == "token_file: No such file or directory"
    file.write_bytes(b"\xff")
    assert str(await refused(api.nodes())).startswith("token_file: 'utf-8' codec can't decode")
    file.write_text("a@b!c=old\n")
    assert (await refused(api.nodes())).status == 401
    file.write_text(f"{TOKEN}\n")
    assert len(await api.nodes()) == 2


@staged_by("play")
async def test_certificate_that_is_not_trusted_gets_no_token(cluster: Cluster, /) -> None:
    error = await refused(ProxmoxApi(cluster.table(verify=True), ENVIRONMENT).nodes())
    assert str(error).startswith("localhost: its certificate is not trusted: ")
    error = await refused(ProxmoxApi(cluster.table(verify="/nowhere/ca.pem"), ENVIRONMENT).nodes())
    assert str(error) == "verify: No such file or directory"
    assert cluster.asked == []
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{unheard.getsockname()[1]}"
        error = await refused(ProxmoxApi(cluster.table(url=url), ENVIRONMENT).nodes())
    assert str(error) == "127.0.0.1: Connection refused"

    async def without_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with listening(without_tls, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        error = await refused(ProxmoxApi(cluster.table(url=url), ENVIRONMENT).nodes())
    assert str(error).startswith("127.0.0.1: [SSL")


@staged_by("play")
async def test_state_and_uptime_are_those_of_the_guest(cluster: Cluster, /) -> None:
    api = ProxmoxApi(cluster.table(), ENVIRONMENT)
    assert await api.status_and_uptime(DB) == ("running", None)
    cluster.guests[102]["uptime"] = 7
    assert await api.status_and_uptime(DB) == ("running", 7.0)
    cluster.guests[102]["uptime"] = "long"
    assert await api.status_and_uptime(DB) == ("running", None)
    for answer in (b'{"data":[]}', b'{"data":{"status":7}}'):
        cluster.answers["/nodes/pve1/lxc/102"] = answer
        error = await refused(api.status_and_uptime(DB))
        assert (str(error), error.status) == (
            "localhost: its answer has no status of the container 102 (db) on pve1", 200,
        )  # fmt: skip
        assert await api.task_failure(DB, "any") == ""


def test_guest_is_named_by_its_kind_number_name_and_node() -> None:
    assert WEB.title == "container 101 (web) on pve1"
    assert WIN.title == "virtual machine 200 (win) on pve2"
    assert WEB._replace(name="").title == "container 101 on pve1"
    assert WEB._replace(node="a/b").path == "/nodes/a%2Fb/lxc/101"
    assert repr(ProxmoxApi(ProxmoxTable(url="https://pve:8007", token_env="T"), {})) == "<ProxmoxApi pve>"
