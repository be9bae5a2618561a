"""Small projects of web frameworks and servers, each as its documentation begins one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Project:
    """The files of a project, and the keys of its server besides name and bind; `/` answers with a text and VERSION."""

    name: str
    files: Mapping[str, str]
    server: Mapping[str, Any]
    preload: bool = False
    edited: str = ""  # the file that contains VERSION; "" if there is none
    path: str = "/"
    programs: tuple[str, ...] = field(default=())  # programs without which its test is skipped

    def __str__(self) -> str:
        return self.name


DJANGO = """
import os
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

VERSION = "1"
settings.configure(SECRET_KEY="test", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
urlpatterns = [path("", lambda request: HttpResponse(f"django {VERSION}"))]
application = get_asgi_application()
"""
FASTAPI = """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

VERSION = "1"
app = FastAPI()

@app.get("/", response_class=PlainTextResponse)
def home():
    return f"fastapi {VERSION}"
"""
LITESTAR = """
from litestar import Litestar, MediaType, get

VERSION = "1"

@get("/", media_type=MediaType.TEXT)
async def home() -> str:
    return f"litestar {VERSION}"

app = Litestar([home])
"""
QUART = """
from quart import Quart

VERSION = "1"
app = Quart(__name__)

@app.get("/")
async def home():
    return f"quart {VERSION}"
"""
FLASK = """
from flask import Flask

VERSION = "1"
app = Flask(__name__)

@app.get("/")
def home():
    return f"flask {VERSION}"
"""
DATASETTE = """
from datasette.app import Datasette

app = Datasette([], memory=True).app()
"""
NODE = """
const fs = require("node:fs")
const VERSION = "1"
const server = require("node:http").createServer((request, response) => response.end(`node ${VERSION}`))
server.listen({ fd: 3 })
process.on("SIGTERM", () => server.close())
"""
PHP = '<?php $VERSION = "1"; echo "php $VERSION";'
GUNICORN = """
VERSION = "1"

def application(environ, start_response):
    body = f"gunicorn {VERSION}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
GRANIAN = """
VERSION = "1"

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"granian {VERSION}".encode()})
"""

FRAMEWORKS = (
    Project("django", {"shop.py": DJANGO}, {"app": "shop:application"}, True, "shop.py"),
    Project("fastapi", {"shop.py": FASTAPI}, {"app": "shop:app"}, True, "shop.py"),
    Project("litestar", {"shop.py": LITESTAR}, {"app": "shop:app"}, True, "shop.py"),
    Project("quart", {"shop.py": QUART}, {"app": "shop:app"}, True, "shop.py"),
    Project("flask", {"shop.py": FLASK}, {"app": "shop:app"}, True, "shop.py"),
    Project("datasette", {"shop.py": DATASETTE}, {"app": "shop:app"}, False, "", "/-/versions.json"),
)
# Programs whose own processes listen on the pool's socket.
PROGRAMS = (
    Project(
        "gunicorn",
        {"shop.py": GUNICORN},
        {"command": ["{bin}/gunicorn", "shop:application"]},
        edited="shop.py",
    ),
    Project(
        "granian",
        {"shop.py": GRANIAN},
        {
            "command": [
                "{bin}/granian",
                "--interface",
                "asgi",
                "--host",
                "{{host}}",
                "--port",
                "{{port}}",
                "shop:app",
            ]
        },
        edited="shop.py",
    ),
    Project(
        "node", {"shop.js": NODE}, {"command": ["node", "shop.js"]}, edited="shop.js", programs=("node",)
    ),
    Project(
        "php",
        {"www/index.php": PHP},
        {"command": ["php", "-S", "{{host}}:{{port}}", "-t", "www"]},
        edited="www/index.php",
        programs=("php",),
    ),
)
# These open their port themselves, and so refuse connections during a restart: see `socket` in the reference.
WITHOUT_THE_SOCKET = ("granian", "php")
