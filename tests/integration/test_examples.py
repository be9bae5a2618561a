"""Every example runs with the command of its README, and does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from tests.deadline import wait_until
from tests.environments import need_gateway
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/pool.toml"))
PORT = re.compile(r"(?<=:)[89]\d{3}\b")


class Example:
    """A copy of an example with ports of its own, so that tests can run beside each other and beside real pools."""

    def __init__(self, name: str, pool: RealPool) -> None:
        self.pool = pool
        self._ports: dict[str, int] = {}
        made = shutil.ignore_patterns("certificate", "spool", "*.sqlite3*", ".venv", "__pycache__")
        shutil.copytree(EXAMPLES / name, pool.directory, dirs_exist_ok=True, ignore=made)
        for path in pool.directory.glob("*.toml"):
            path.write_text(PORT.sub(lambda match: str(self._port(match[0])), path.read_text()))

    def _port(self, written: str) -> int:
        if written not in self._ports:
            self._ports[written] = claim_port()
        return self._ports[written]

    def ask(
        self,
        port: int,
        path: str = "/",
        *,
        data: bytes | None = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        ca: str = "",
    ) -> Any:
        """The answer of the server that the README says is on that port: JSON, or text."""
        host = "https://localhost" if ca else "http://127.0.0.1"
        url = f"{host}:{self._ports[str(port)]}{path}"
        context = ssl.create_default_context(cafile=self.pool.directory / ca) if ca else None
        request = urllib.request.Request(url, data, headers or {}, method=method)
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            text = response.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def answers(self, port: int) -> bool:
        """Whether a server answers there by now."""
        try:
            self.ask(port)
        except OSError:
            return False
        return True

    def refusal(self, port: int, path: str = "/", **options: Any) -> int:
        """The status with which a request is refused."""
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.ask(port, path, **options)
        caught.value.close()
        return caught.value.code


def test_no_two_examples_share_an_address() -> None:
    binds = [server.bind for name in NAMES for server in PoolConfig.load(EXAMPLES / name / "pool.toml")]
    taken = [bind for bind in binds if not bind.startswith(("job:", "process:"))]
    assert len(taken) == len(set(taken)) >= 10
    assert {bind for bind in taken if not bind.startswith("127.0.0.1:")} == {
        "0.0.0.0:8060"
    }  # of the container


def test_every_example_is_described() -> None:
    overview = (EXAMPLES / "README.md").read_text()
    for name in NAMES:
        assert f"[{name}]({name})" in overview
        readme = (EXAMPLES / name / "README.md").read_text()
        for server in PoolConfig.load(EXAMPLES / name / "pool.toml"):
            assert server.name in readme or server.bind.rpartition(":")[2] in readme


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("http-and-https", "gateway", "cluster")]
)
def test_every_example_is_valid_and_its_apps_can_be_imported(name: str, real_pool: RealPool) -> None:
    Example(name, real_pool)
    assert re.fullmatch(r"\d servers?, ok\n", real_pool.ok("validate", "--import").stdout)


def test_http_and_https_together(real_pool: RealPool) -> None:
    example = Example("http-and-https", real_pool)
    real_pool.ok("start")
    assert "came over TLS" in example.ask(8443, ca="certificate/cert.pem")
    assert oct((real_pool.directory / "certificate/key.pem").stat().st_mode & 0o777) == "0o600"
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):  # it followed the redirect
        example.ask(8080, "/some/where")
    assert real_pool.ok("validate").stdout == "3 servers, ok (applications not imported: --import)\n"
    before = (real_pool.directory / "certificate/cert.pem").read_bytes()
    real_pool.ok("restart")
    assert (real_pool.directory / "certificate/cert.pem").read_bytes() == before
    real_pool.ok("status")


def test_microservices_on_several_ports(real_pool: RealPool) -> None:
    example = Example("microservices", real_pool)
    real_pool.ok("start")
    order = {"user": "ada", "item": "book"}
    assert example.ask(8082, data=json.dumps(order).encode()) == {
        "item": "book", "user": "Ada Lovelace", "paid_cents": 1990,
    }  # fmt: skip
    assert example.refusal(8082, data=json.dumps(order | {"item": "yacht"}).encode()) == 402
    assert example.refusal(8082, data=json.dumps(order | {"user": "bob"}).encode()) == 404
    assert example.refusal(8082, data=b"{}") == 400
    assert example.refusal(8081, method="DELETE") == 405
    assert len(real_pool.items()["orders"]["pids"]) == 2
    assert real_pool.ok("list", "--tag", "money", "-o", "name").stdout == "payments\n"


def test_development_against_production(real_pool: RealPool, tmp_path: Path) -> None:
    example = Example("development-and-production", real_pool)
    real_pool.ok("start")
    assert example.ask(8010) == "3 notes (development)\n"
    assert "1: write tests" in example.ask(8011)
    real_pool.ok("stop")

    both = ("-c", "pool.toml", "-c", "production.toml")
    forgotten = real_pool.run(*both, "start")
    assert forgotten.code == 5
    assert "TLS_CERT" in forgotten.stderr

    script = EXAMPLES / "http-and-https" / "make-certificate.sh"
    subprocess.run(["sh", script, tmp_path / "certificate"], check=True, timeout=60)
    secrets = {"TLS_CERT": "certificate/cert.pem", "TLS_KEY": "certificate/key.pem"}
    real_pool.ok(*both, "start", env=secrets)
    assert example.ask(8444, ca="certificate/cert.pem") == "3 notes (production)\n"
    assert "1: write tests" in example.ask(8445, ca="certificate/cert.pem")
    assert {len(item["pids"]) for item in real_pool.items().values()} == {2}
    real_pool.ok("stop")


def test_admin_and_public_apart(real_pool: RealPool) -> None:
    example = Example("admin-and-public", real_pool)
    real_pool.ok("start")
    assert example.ask(8070, data=b"Hello from Bern") == {"id": 1}
    assert example.ask(8070) == [{"id": 1, "text": "Hello from Bern"}]
    assert example.ask(9070) == {"entries": 1}
    operator = real_pool.items()["admin"]["pids"]
    real_pool.ok("restart", "--tag", "public")
    assert real_pool.items()["admin"]["pids"] == operator
    assert example.ask(9070, "/1", method="DELETE") == {"removed": 1}
    assert example.refusal(9070, "/1", method="DELETE") == 404
    assert example.ask(8070) == []
    assert example.refusal(8070, data=b" ") == 400


def test_an_existing_project(real_pool: RealPool) -> None:
    example = Example("existing-project", real_pool)
    real_pool.ok("start")
    assert example.ask(8090, "/books/sicp") == {"book": "sicp", "cents": 6900, "currency": "CHF"}
    assert example.ask(8090, "/books") == ["sicp", "taocp", "tapl"]
    assert example.refusal(8090, "/books/none") == 404
    assert example.ask(8091) == {"title": "Bookshop, back office", "books": 3}


def test_a_flask_application(real_pool: RealPool) -> None:
    example = Example("flask", real_pool)
    assert "WSGI, served by a2wsgi: flask-shop" in real_pool.ok("validate", "--import").stderr
    real_pool.ok("start")
    assert example.ask(8050)["stock"] == {"tea": 12, "coffee": 8}
    assert example.ask(8050, "/orders/tea?count=2", method="POST") == {"ordered": "tea", "count": 2}
    assert example.refusal(8050, "/orders/milk", method="POST") == 404
    assert example.ask(8050, "/report") == "tea: 12\ncoffee: 8\n"
    pids = real_pool.items()["flask-shop"]["pids"]
    real_pool.ok("restart")
    assert set(pids).isdisjoint(real_pool.items()["flask-shop"]["pids"])


def test_programs_without_a_port(real_pool: RealPool) -> None:
    example = Example("background-work", real_pool)
    real_pool.ok("start")
    assert example.ask(8020, data=b"a letter") == {"accepted": "a letter"}
    wait_until(lambda: {"a letter", "tick"} <= {each["text"] for each in example.ask(8020)})
    items = real_pool.items("--tag", "background")
    assert {name: (item["bind"], item["ready"]) for name, item in items.items()} == {
        "worker": ("process:worker", True), "clock": ("process:clock", True),
    }  # fmt: skip
    assert {each["worker"] for each in example.ask(8020)} <= set(items["worker"]["pids"])
    real_pool.ok("restart", "worker")
    assert set(items["worker"]["pids"]).isdisjoint(real_pool.items()["worker"]["pids"])
    wait_until(lambda: "after the task" in real_pool.ok("logs", "worker").stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="the page of the example is served by node")
def test_a_pool_for_a_cluster(real_pool: RealPool) -> None:
    example = Example("cluster", real_pool)
    real_pool.env["PATH"] = f"{Path(sys.executable).parent}:{real_pool.env['PATH']}"  # where gunicorn is
    assert real_pool.ok("validate", "--import").stdout == "5 servers, ok\n"
    real_pool.ok("start")
    assert example.ask(8030, "/orders/tea", method="POST") == {"ordered": "tea"}
    wait_until(lambda: "✓ tea" in example.ask(8031))
    assert example.ask(8032) == "1 orders\n"
    real_pool.ok("restart", "front", "admin")
    assert "✓ tea" in example.ask(8031)


def test_django_for_two_hosts(real_pool: RealPool) -> None:
    example = Example("django", real_pool)
    real_pool.ok("start")
    body = (
        b'--it\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\nPNG\r\n--it--\r\n"
    )
    form = {"Content-Type": "multipart/form-data; boundary=it"}
    assert example.refusal(8034, data=body, headers=form) == 403
    assert example.ask(8035, data=body, headers=form) == {"saved": "a.png"}
    assert example.ask(8034) == {"pictures": ["a.png"]}
    assert example.ask(8034, "/pictures/a.png") == "PNG"
    assert example.refusal(8034, "/check", headers={"Host": "gallery.example.com"}) == 400


def test_a_container(real_pool: RealPool) -> None:
    example = Example("container", real_pool)
    dockerfile = (EXAMPLES / "container/Dockerfile").read_text()
    variables = dict(
        pair.split("=", 1) for pair in re.findall(r"[A-Z_]+=\S+", dockerfile.partition("\nENV ")[2])
    )
    process = real_pool.spawn("run", env={"POOLCTL_LOG_FORMAT": variables["POOLCTL_LOG_FORMAT"]})
    check = re.findall(r"HEALTHCHECK .*CMD (\[.*\])", dockerfile)[0]
    wait_until(lambda: real_pool.run(*json.loads(check)[1:]).code == 0)
    assert example.ask(8060) == "hello from a container\n"
    process.terminate()
    stdout, _ = process.communicate(timeout=60)
    assert {json.loads(line)["server"] for line in stdout.splitlines()} == {"web"}


# What `docker run --read-only --tmpfs` gives, by the kernel's own means: process 1, a root that cannot be written to,
# one directory in memory, and a user without a name or a capability.
IN_A_CONTAINER = """
mount --make-rprivate /
mount -t tmpfs -o mode=1777 tmpfs "$1"
mount -o remount,bind,ro /
shift
exec setpriv --reuid=10001 --regid=10001 --clear-groups --bounding-set=-all --no-new-privs -- env "$@"
"""


def test_a_container_needs_no_rights_and_one_directory(real_pool: RealPool) -> None:
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.path.ismount("/tmp") or subprocess.run([*namespaces, "true"], capture_output=True).returncode:
        pytest.skip("no namespace with a root of its own")
    real_pool.open_to_all()
    example = Example("container", real_pool)
    writable = real_pool.runtime
    words = json.loads(re.findall(r"^CMD (.*)", (EXAMPLES / "container/Dockerfile").read_text(), re.M)[0])
    process = subprocess.Popen(
        [*namespaces, "sh", "-ec", IN_A_CONTAINER, "sh", str(writable), *real_pool.command(), *words[1:]],
        cwd=real_pool.directory, env=real_pool.env | {"TMPDIR": str(writable)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or example.answers(8060))
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert example.ask(8060) == "hello from a container\n"
        (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert Path(f"/proc/{inner}/status").read_text().split("NSpid:")[1].split()[1] == "1"
        os.kill(int(inner), signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert not list(writable.iterdir()), "the directory in memory is its own"


def test_the_live_table_shows_the_pool_for_as_long_as_it_runs(real_pool: RealPool) -> None:
    Example("microservices", real_pool)
    real_pool.ok("start")
    watch = [sys.executable, str(EXAMPLES / "watch.py"), *real_pool.command()]
    with subprocess.Popen(
        watch, cwd=real_pool.directory, env=real_pool.env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        head = process.stdout.readline()
        assert head.split() == ["NAME", "EXPOSE", "STATE", "READY", "UPTIME", "PIDS"]
        assert process.stdout.readline().split()[0] == "users"
        for _ in range(200):  # `timeout make demo` sends one to its group, and `run` passes another on
            process.terminate()
        assert process.wait(60) == 0


def test_the_live_view_shows_routes(real_pool: RealPool) -> None:
    need_gateway()
    Example("microservices", real_pool)
    files = ("-c", "pool.toml", "-c", "gateway.toml")
    real_pool.ok(*files, "start")
    watch = [sys.executable, str(EXAMPLES / "watch.py"), *real_pool.command(), *files]
    with subprocess.Popen(
        watch, cwd=real_pool.directory, env=real_pool.env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        words = (line.split() for line in process.stdout)
        next(each for each in words if each == ["ROUTE", "TO", "STATE", "REQUESTS"])
        assert next(words)[1:] == ["users", "healthy", "0"]
        process.terminate()
        assert process.wait(60) == 0
    real_pool.ok(*files, "stop")


@pytest.mark.capability
def test_one_address_for_several_servers(real_pool: RealPool) -> None:
    need_gateway()
    example = Example("gateway", real_pool)
    subprocess.run(["sh", "make-certificate.sh", "certificate"], cwd=real_pool.directory, check=True)
    real_pool.ok("start")
    assert "new WebSocket" in example.ask(8040)
    assert example.ask(8040, "/api/hello")["route"] == "api"
    assert "for 127.0.0.1" in example.ask(8043, "/reports/monthly", ca="certificate/cert.pem")
    assert example.refusal(8040, "/reports") == 404
    states = {each["alias"]: each["state"] for each in real_pool.ok("routes", "-o", "json").json["items"]}
    assert states == {"web": "healthy", "api": "healthy", "chat": "napping", "reports": "healthy"}
