"""A virtual environment that a server's user can change: none of its code runs as root."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# At the start of every interpreter of the environment, as a line of a .pth file.
NOTE = "import os; open({path!r}, 'a').write(str(os.geteuid()) + '\\n')\n"


@pytest.fixture
def notes(pool: RealPool) -> Path:
    """A file in which each interpreter of the environment notes as whom it starts; the pool's files are written."""
    pool.open_to_all()
    notes = pool.write("notes", "")
    notes.chmod(0o666)
    venv = pool.directory / "venv"
    subprocess.run([pool.python, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    packages = subprocess.run(
        [pool.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (site / "a.pth").write_text(packages)
    (site / "b.pth").write_text(NOTE.format(path=str(notes)))
    subprocess.run(["chown", "-R", "nobody", str(venv)], check=True)
    return notes


@pytest.mark.heavy_variants
@pytest.mark.parametrize("keys", ["", "preload = true\n"], ids=["", "preload"])
def test_environment_of_a_servers_user_is_entered_as_that_user_only(
    pool: RealPool, notes: Path, until: Any, keys: str
) -> None:
    ports = pool.write_hello("web", extra=f'user = "nobody"\npython = "venv"\nworkers = 2\n{keys}')
    for command in (["validate"], ["validate", "--import"], ["doctor"], ["start"]):
        pool.run(*command)
        assert set(notes.read_text().split()) <= {"65534"}, command
    assert notes.read_text()
    before = pool.items()["web"]["pids"]
    assert len(before) == 2
    assert get(ports["web"]).status == 200
    pool.ok("restart")
    after = pool.items()["web"]["pids"]
    assert not set(before) & set(after)
    pool.replace_supervisor()
    pool.ok("restart")
    pool.ok("stop")
    until(lambda: not pool.processes())
    assert set(notes.read_text().split()) == {"65534"}


def test_environment_next_to_the_file_is_not_entered_before_its_server_is_known(
    pool: RealPool, notes: Path
) -> None:
    (pool.directory / "venv").rename(pool.directory / ".venv")
    pool.write_hello("web", extra='user = "nobody"')
    pool.ok("start")
    assert set(notes.read_text().split()) == {"65534"}
    pool.ok("stop")


def test_root_is_warned_before_it_runs_an_environment_of_another_user(pool: RealPool, notes: Path) -> None:
    pool.write_hello("web", extra='python = "venv"')
    for command in ("validate", "start", "doctor"):
        done = pool.run(command)
        assert "user nobody can modify" in done.stdout + done.stderr, str(done)
        assert "chown -R root" in done.stdout + done.stderr, str(done)
    pool.ok("stop")


@pytest.mark.parametrize("key", ["env_file = 'theirs/secrets'", "tls = { cert = 'theirs/secrets' }"])
def test_files_are_not_read_through_a_link_that_the_servers_user_has_laid(pool: RealPool, key: str) -> None:
    pool.open_to_all()
    secret = pool.write("roots", "SECRET=1\n")
    secret.chmod(0o600)
    theirs = pool.directory / "theirs"
    theirs.mkdir()
    (theirs / "secrets").symlink_to(secret)
    subprocess.run(["chown", "-hR", "nobody", str(theirs)], check=True)
    pool.write_hello("web", extra=f'user = "nobody"\n{key}')
    done = pool.run("start")
    assert done.code != 0
    assert "SECRET" not in done.stdout + done.stderr
    assert "link" in done.stderr or "certificate" in done.stderr


# In the place of the zygote: says that it is up, and names the victim whenever it is asked for a worker.
FALSE_ZYGOTE = """
import json, os, socket
if b"zygote" in open("/proc/self/cmdline", "rb").read().split(b"\\0"):
    requests = socket.socket(fileno=3)
    requests.send(b'{"event": "up"}')
    while message := requests.recv(65536):
        number = json.loads(message).get("id")
        requests.send(json.dumps({"id": number, "pid": int(open(VICTIM).read())}).encode())
    os._exit(0)
"""


def test_false_zygote_of_a_servers_user_harms_no_other_server(
    pool: RealPool, notes: Path, until: Any
) -> None:
    (site,) = pool.directory.glob("venv/lib/python3*/site-packages")
    victim = pool.directory / "victim"
    (site / "false_zygote.py").write_text(FALSE_ZYGOTE.replace("VICTIM", repr(str(victim))))
    (site / "c.pth").write_text("import false_zygote\n")
    pool.write_hello("good", "bad")
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", text + 'user = "nobody"\npython = "venv"\nrestart = "no"\n')
    pool.ok("start", "good")
    (good,) = pool.items()["good"]["pids"]
    victim.write_text(str(good))
    done = pool.run("start", "bad")
    assert done.code != 0
    assert "another process of the pool" in done.stderr
    pool.ok("stop", "bad")
    assert pool.items()["good"]["pids"] == [good]
    pool.ok("stop")
    until(lambda: not pool.processes())
