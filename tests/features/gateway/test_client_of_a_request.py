"""Applications behind a real gateway know the client of a request, its scheme and its path, without any key."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from poolctl.routing.context import context_value
from tests.certificates import certificate
from tests.environments import need_gateway
from tests.http_get import Reply, get
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = pytest.mark.integration

STARLETTE = """
from poolctl.gateway.routes import registry_of, try_get_route, upstream_name
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

def seen(scope, url):
    route = try_get_route(scope)
    return {
        "scheme": scope["scheme"], "client": scope["client"] and scope["client"][0], "url": url,
        "headers": sorted(name.decode() for name, _ in scope["headers"] if b"poolctl" in name),
        "route": route and route.alias, "server": upstream_name(scope),
        "routes": sorted(each.alias for each in registry_of(scope).http),
    }

async def show(request):
    return JSONResponse(seen(request.scope, str(request.url_for("show"))))

async def talk(socket):
    await socket.accept()
    await socket.send_json(seen(socket.scope, str(socket.url_for("talk"))))
    await socket.close()

app = Starlette(routes=[Route("/seen/", show, name="show"), WebSocketRoute("/talk", talk, name="talk")])
"""
FASTAPI = """
from fastapi import FastAPI, Request

app = FastAPI()

@app.get("/seen/", name="show")
async def show(request: Request):
    return {"scheme": request.url.scheme, "client": request.client.host, "url": str(request.url_for("show"))}
"""
FLASK = """
from flask import Flask, request, url_for

app = Flask(__name__)

@app.get("/seen/")
def show():
    return {"scheme": request.scheme, "client": request.remote_addr, "url": url_for("show", _external=True)}
"""
DJANGO = """
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path, reverse

def show(request):
    url = request.build_absolute_uri(reverse("show"))
    return JsonResponse({"scheme": request.scheme, "client": request.META["REMOTE_ADDR"], "url": url})

settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=["django.middleware.common.CommonMiddleware"]
)
urlpatterns = [path("seen/", show, name="show")]
app = get_asgi_application()
"""

SERVER = """
[[route]]
alias = "{name}"
host = "shop.test"
path = "/{name}"
to = "{name}"
strip_path = true
[[server]]
name = "{name}"
bind = "127.0.0.1:{port}"
app = "{name}:app"
"""


class Site:
    """A pool whose gateway ends TLS for shop.test; the path of each server is its name."""

    def __init__(self, pool: RealPool) -> None:
        need_gateway()
        self.pool = pool
        self.plain, self.tls = claim_port(), claim_port()
        self.ports: dict[str, int] = {}
        self.trust = ssl.create_default_context()
        self.trust.check_hostname, self.trust.verify_mode = False, ssl.CERT_NONE
        certificate(pool.directory, "edge")

    def start(self, extra: str = "", gateway: str = "", **apps: str) -> None:
        text = (
            f'[gateway]\nbind = ["127.0.0.1:{self.plain}", {{ bind = "127.0.0.1:{self.tls}", '
            f'tls = {{ cert = "edge.pem", key = "edge.key" }} }}]\n{gateway}'
        )
        for name, app in apps.items():
            self.pool.write(f"{name}.py", app)
            self.ports[name] = claim_port()
            text += SERVER.format(name=name, port=self.ports[name])
        self.pool.write("pool.toml", text + extra)
        self.pool.ok("start")

    def get(self, path: str, **headers: str) -> Reply:
        """The answer to a request over TLS."""
        return get(f"https://127.0.0.1:{self.tls}", path, headers={"Host": "shop.test", **headers})

    def seen_by_websocket(self, path: str) -> Any:
        async def talk() -> Any:
            url = f"wss://shop.test{path}"
            async with connect(url, host="127.0.0.1", port=self.tls, ssl=self.trust) as client:
                return json.loads(await client.recv())

        return asyncio.run(talk())


@pytest.fixture
def site(real_pool: RealPool) -> Site:
    return Site(real_pool)


@pytest.mark.capability
def test_application_knows_scheme_client_and_prefix_of_requests_and_websockets(site: Site) -> None:
    site.start(api=STARLETTE)
    common = {
        "client": "127.0.0.1", "headers": [], "route": "api", "server": "api", "routes": ["api"],
    }  # fmt: skip
    expected = {"scheme": "https", "url": "https://shop.test/api/seen/", **common}
    assert site.get("/api/seen/").json() == expected
    assert site.get("/api/seen").headers["location"] == "https://shop.test/api/seen/"
    plain = get(site.plain, "/api/seen/", headers={"Host": "shop.test"}).json()
    assert plain == {**expected, "scheme": "http", "url": "http://shop.test/api/seen/"}
    talked = site.seen_by_websocket("/api/talk")
    assert talked == {"scheme": "wss", "url": "wss://shop.test/api/talk", **common}


@pytest.mark.slow
def test_frameworks_know_scheme_client_and_prefix(site: Site) -> None:
    pytest.importorskip("django")
    site.start(fastapp=FASTAPI, flaskapp=FLASK, djangoapp=DJANGO)
    for name in site.ports:
        url = f"https://shop.test/{name}/seen/"
        assert site.get(f"/{name}/seen/").json() == {"scheme": "https", "client": "127.0.0.1", "url": url}
        assert site.get(f"/{name}/seen").headers["location"] in (url, f"/{name}/seen/")


@pytest.mark.slow
def test_application_knows_the_client_behind_a_trusted_proxy_and_believes_no_other(site: Site) -> None:
    site.start(api=STARLETTE, gateway='trusted_proxies = ["127.0.0.1", "10.0.0.0/8"]\n')
    claim = {"X-Forwarded-For": "192.0.2.1, 192.0.2.7, 10.1.1.1", "X-Forwarded-Proto": "http"}
    seen = site.get("/api/seen/", **claim).json()
    assert (seen["client"], seen["scheme"]) == ("192.0.2.7", "http")
    # A change of the networks reaches the worker without a restart.
    pids = site.pool.items()["api"]["pids"]
    text = (site.pool.directory / "pool.toml").read_text()
    site.pool.write("pool.toml", text.replace('"10.0.0.0/8"', '"10.0.0.0/16"'))
    site.pool.ok("reload")
    assert site.get("/api/seen/", **claim).json()["client"] == "10.1.1.1"
    site.pool.write("pool.toml", text.replace('"127.0.0.1", "10.0.0.0/8"', ""))
    site.pool.ok("reload")
    seen = site.get("/api/seen/", **claim).json()
    assert (seen["client"], seen["scheme"]) == ("127.0.0.1", "https")
    assert site.pool.items()["api"]["pids"] == pids


def test_client_cannot_pass_itself_off_as_the_gateway(site: Site) -> None:
    site.start(api=STARLETTE)
    forged = {
        "X-Poolctl-Context": context_value("api", "0" * 32, "api"),
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/elsewhere",
    }
    expected = {
        "scheme": "http", "client": "127.0.0.1", "url": "http://shop.test/seen/", "headers": [], "route": None,
        "server": "", "routes": [],
    }  # fmt: skip
    own = get(site.ports["api"], "/seen/", headers={"Host": "shop.test", **forged})
    assert own.json() == expected
    through = get(site.plain, "/api/seen/", headers={"Host": "shop.test", **forged}).json()
    assert (through["scheme"], through["client"], through["route"]) == ("http", "127.0.0.1", "api")
    assert (through["url"], through["headers"]) == ("http://shop.test/api/seen/", [])


@pytest.fixture
def outside() -> Iterator[tuple[int, list[bytes]]]:
    """The port of a service outside the pool, and the heads of its requests."""
    heads: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                heads.append(connection.recv(65536))
                answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\noutside"
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=[listening])
        thread.start()
        yield listening.getsockname()[1], heads
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_key_of_a_server_is_sent_to_its_workers_alone(site: Site, outside: tuple[int, list[bytes]]) -> None:
    port, heads = outside
    mixed = f"""
[[route]]
alias = "mixed"
host = "mixed.test"
to = ["api", "http://127.0.0.1:{port}"]
"""
    site.start(mixed, api=STARLETTE)
    answers = [get(site.plain, "/seen/", headers={"Host": "mixed.test"}) for _ in range(4)]
    routes = [each.json()["route"] for each in answers if each.text != "outside"]
    assert routes == ["mixed", "mixed"]
    text = _haproxy_configuration(site.pool)
    (key,) = set(re.findall(r"server api:([0-9a-f]{32}):", text))
    assert len(heads) == 2
    assert not [head for head in heads if key.encode() in head]


def _haproxy_configuration(pool: RealPool) -> str:
    (path,) = Path(pool.runtime).rglob("haproxy.cfg")
    assert path.stat().st_mode & 0o077 == 0
    return path.read_text()


@pytest.mark.slow
def test_connection_of_the_gateway_outlives_the_servers_keep_alive_time(site: Site) -> None:
    site.start('http = { keep_alive = "50ms" }\n', api=STARLETTE)
    kept = http.client.HTTPConnection("127.0.0.1", site.plain, timeout=60)
    with closing(kept):
        before = None
        for _ in range(3):
            kept.request("GET", "/api/seen/", headers={"Host": "shop.test"})
            assert kept.getresponse().read()
            (inode,) = _connections_to(site.ports["api"])
            assert before in (None, inode)
            before = inode
            # The server has closed this one after its keep-alive time, which had begun later.
            with socket.create_connection(("127.0.0.1", site.ports["api"])) as own:
                own.sendall(b"GET /seen/ HTTP/1.1\r\nHost: a\r\n\r\n")
                own.settimeout(30)
                while own.recv(65536):
                    pass


def _connections_to(port: int) -> set[str]:
    """The inodes of clients' open connections to this port of 127.0.0.1."""
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    wanted = f"0100007F:{port:04X}"
    return {row[9] for row in rows if row[2] == wanted and row[3] == "01"}
