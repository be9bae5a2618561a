"""`poolctl init`: writes a starter pool.toml, and on request a minimal application for it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from glob import glob
from pathlib import Path
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import examples, with_options
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.config import FILE_NAMES, PYPROJECT
from poolctl.exit_codes import CONFLICT, FAILED
from poolctl.feature import features

POOL = """\
# A pool of HTTP servers. Every key: `poolctl config --schema`, checks: `poolctl validate`.

[pool]
# The pool's name (`poolctl --pool {name} status`); default: derived from this file's path.
# name = "{name}"
# Range from which `bind = "127.0.0.1:auto"` chooses a port.
# port_range = "20000-29999"

[defaults]                       # for every server; a server's own value wins
# restart = "always"             # "no", "on-failure" or "always"
# start_timeout = "30s"

[[server]]
name = "web"                     # unique; letters, digits, dots, underscores, hyphens
bind = "127.0.0.1:8080"          # ":8080", "[::1]:8080", "unix:./web.sock", "127.0.0.1:auto"
app = "{app}"{padding}# module:attribute, an ASGI or WSGI application
{health}# ready when GET on this path answers; a restart waits for it
# workers = 2
# tags = ["public"]
# env = {{ LOG_LEVEL = "info" }}
# expose = "https://example.org" # the address that clients use

# [[server]]
# name = "admin"
# bind = "127.0.0.1:8081"
# command = ["python3", "-m", "http.server", "{{port}}", "--bind", "{{host}}"]  # any program instead of an app
# depends_on = ["web"]

# [[server]]
# name = "queue"                 # no bind: a program without a port, which runs for ever
# command = ["celery", "--app", "shop", "worker"]
# restart = "always"
"""

APP = '''\
"""A tiny ASGI application: https://asgi.readthedocs.io"""


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    host, port = scope["server"][:2]
    body = f"hello from {host}:{port}\\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
'''
APP_FILE = "hello.py"
# An existing application: `app = FastAPI()` at the beginning of a line.
_FRAMEWORKS = (
    "FastAPI|Starlette|Litestar|Quart|Sanic|BlackSheep|Flask|get_asgi_application|get_wsgi_application"
)
_APPLICATION = rf"^(\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?(?:{_FRAMEWORKS})\("
# `django-admin startproject` creates the last one.
_USUAL_FILES = (
    "main.py", "app.py", "asgi.py", "server.py", "wsgi.py", "app/main.py", "src/main.py", "*/wsgi.py",
)  # fmt: skip

STARTERS = {name: (starter, feature) for feature in features() for name, starter in feature.starters.items()}

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl init --app            with a tiny application to start with",
        *(starter.example for starter, _ in STARTERS.values()),
    ),
)
@with_options
def init(
    place: Place,
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIRECTORY]", help="Where to write; default: the working directory."),
    ] = None,
    with_app: Annotated[bool, typer.Option("--app", help="Also write a tiny application.")] = False,
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway",
            help="Write one with a gateway: two servers behind one port.",
            hidden="gateway" not in STARTERS,
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> Outcome:
    """Write a starter pool.toml, or the file that -c names."""
    path = _target_path(place, directory)
    home = os.path.dirname(path) or "."
    existing = "" if with_app else existing_app(home)
    if not with_app:
        # Before the user is asked.
        _refuse_existing([path] if os.path.lexists(path) and not force else [])
        with_app = not (existing or os.path.lexists(os.path.join(home, APP_FILE))) and _ask_to_write_app(
            quiet=place.quiet
        )
    app = existing or "hello:app"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.path.abspath(home))).strip("-.") or "pool"
    starter = None
    if gateway:
        template, feature = STARTERS["gateway"]
        starter = feature.load(template.module)
    pool = starter.POOL if starter else POOL
    health = 'health = "/"' if with_app else '# health = "/ready"'
    texts = {
        os.path.basename(path): pool.format(
            name=name, app=app, padding=" " * max(1, 25 - len(app)), health=f"{health:33}"
        )
    }
    if with_app:
        texts[APP_FILE] = APP
    _write(home, texts, force=force)
    written = " and ".join(os.path.normpath(os.path.join(home, file)) for file in texts)
    start = f"poolctl -c {shlex.quote(path)} start" if place.config else "poolctl start"
    outcome = Outcome(message=f"wrote {written}; next: {start}")
    if not with_app and not existing and not os.path.exists(os.path.join(home, APP_FILE)):
        outcome.message = f"wrote {written}; next: name your application in it, then {start}"
        outcome.warnings = [
            f"{app!r} does not exist yet: name your application, or create it with poolctl init --app --force"
        ]
    if starter:
        outcome.warnings += starter.warnings()
    return outcome


def _target_path(place: Place, directory: Path | None) -> str:
    """The path of the file to write: from -c, else pool.toml in the directory. UsageError for an unsuitable path."""
    config_files = [*map(str, place.config or ())]
    if not config_files:
        if directory and ":" in directory.name and not directory.exists():
            raise UsageError(
                f"init takes a directory, and {str(directory)!r} looks like an application",
                hint=f"poolctl init, then app = {str(directory)!r} in {FILE_NAMES[0]}",
            )
        return os.path.join(directory or ".", FILE_NAMES[0])
    if directory is not None or len(config_files) > 1:
        raise UsageError("init writes one file", hint="poolctl init DIRECTORY, or poolctl -c FILE init")
    if not config_files[0].endswith(".toml") or os.path.basename(config_files[0]) == PYPROJECT:
        raise UsageError(f"init writes a new TOML file, not {config_files[0]!r}", hint="-c NAME.toml")
    return config_files[0]


def existing_app(directory: str) -> str:
    """The `module:attribute` of an application in main.py, a Django project or another usual place, else ""."""
    for file in (file for usual in _USUAL_FILES for file in sorted(glob(usual, root_dir=directory))):
        try:
            with open(os.path.join(directory, file), encoding="utf-8", errors="replace") as source:
                match = re.search(_APPLICATION, source.read(), re.MULTILINE)
        except OSError:
            continue
        if match:
            return f"{file.removesuffix('.py').replace('/', '.')}:{match[1]}"
    return ""


def _ask_to_write_app(*, quiet: bool) -> bool:
    """Ask whether to write a tiny application. Without a terminal, or with --quiet, return False without asking."""
    if quiet or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    while True:
        sys.stderr.write(f"Write a tiny application ({APP_FILE}) too? [Y/n] ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        answer = line.strip().lower()
        if line and answer in ("", "y", "yes"):
            return True
        if not line or answer in ("n", "no"):  # end of input means no
            return False
        sys.stderr.write("Please answer yes or no.\n")


def _refuse_existing(paths: list[str]) -> None:
    if paths:
        verb = "exists" if len(paths) == 1 else "exist"
        message = f"{' and '.join(map(os.path.normpath, paths))} already {verb}"
        raise Failure(Outcome.failed(CONFLICT, message, "use --force to overwrite"))


def _write(directory: str, texts: dict[str, str], *, force: bool) -> None:
    paths = {os.path.normpath(os.path.join(directory, file)): text for file, text in texts.items()}
    _refuse_existing([path for path in paths if os.path.lexists(path) and not force])
    try:
        os.makedirs(directory, exist_ok=True)
        for path, text in paths.items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise Failure(Outcome.failed(FAILED, f"cannot write {error.filename}: {error.strerror}")) from None
