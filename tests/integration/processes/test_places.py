"""Every kind of address, with real servers: loopback names, IPv6, Unix sockets, inherited sockets, taken ports, TLS."""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.configuration import server
from tests.http_get import get
from tests.processes import descriptors
from tests.real_pool import COMMAND_TIMEOUT_SECONDS, HELLO_APP, RealPool


@pytest.fixture
def hello(pool: RealPool) -> Any:
    """Starts servers of the small app, by name and their keys."""

    def start(**servers: dict[str, Any]) -> dict[str, Any]:
        pool.write("hello.py", HELLO_APP)
        pool.write(
            "pool.toml",
            "".join(server(name, **{"app": "hello:app"} | keys) for name, keys in servers.items()),
        )
        pool.ok("start")
        return pool.items()

    return start


def test_a_unix_socket_of_a_program_is_ready_when_the_program_accepts(pool: RealPool) -> None:
    path = pool.runtime / "web.sock"
    pool.write(
        "late.py",
        """
        import pathlib, socket, time
        listener = socket.socket(fileno=3)
        time.sleep(0.5)
        pathlib.Path("accepting").touch()
        while True:
            listener.accept()[0].close()
        """,
    )
    pool.write("pool.toml", server("web", bind=f"unix:{path}", command=[sys.executable, "late.py"]))
    pool.ok("start")
    assert (pool.directory / "accepting").exists()


@pytest.mark.capability
def test_a_socket_of_systemds_is_served_and_given_back_as_it_was(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    pool.write("hello.py", HELLO_APP)
    pool.write(
        "pool.toml",
        server("web", bind="fd:web", app="hello:app") + server("other", bind="fd:4", app="hello:app"),
    )
    with socket.create_server(("127.0.0.1", port)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        lifted = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 100) for sock in (one, two)]

        def pass_them() -> None:
            for place, fd in enumerate(lifted, 3):
                os.dup2(fd, place)

        started = subprocess.run(
            ["/bin/sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh", *pool.command(), "start"],
            env=pool.env | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:"}, cwd=pool.directory, capture_output=True,
            text=True, preexec_fn=pass_them, pass_fds=(3, 4), timeout=COMMAND_TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
        for fd in lifted:
            os.close(fd)
        assert started.returncode == 0, started.stderr
        assert get(port).status == 200
        assert get(two.getsockname()[1]).status == 200
        items = pool.items()
        assert items["web"]["bind"] == "fd:web"
        assert str(port) in str(pool.ok("list").stdout) or str(port) in str(items["web"])
        pool.ok("restart")
        assert get(port).status == 200
        pool.ok("stop")
        # It accepts connections still: the socket is systemd's.
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            pass


def test_a_taken_port_names_its_holder_and_is_tried_again(pool: RealPool, free_port: Any, until: Any) -> None:
    port = free_port()
    pool.write("hello.py", HELLO_APP)
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="hello:app"))
    with socket.create_server(("127.0.0.1", port)):
        done = pool.run("start")
        assert done.code == 1
        assert str(os.getpid()) in done.stderr
        assert str(port) in done.stderr
    until(lambda: pool.items()["web"]["ready"])


def test_program_that_binds_itself_has_a_taken_port_reported_too(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", "{port}"]
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", command=command, restart="no"))
    with socket.create_server(("127.0.0.1", port)):
        done = pool.run("start")
    assert done.code == 1
    assert str(os.getpid()) in done.stderr


def ask_tls(port: int, server: Path, client: tuple[Path, Path] | None = None) -> bytes:
    """The answer of a server with this certificate to a client with another one, or without any."""
    context = ssl.create_default_context(cafile=str(server))
    if client:
        context.load_cert_chain(*client)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := secured.recv(65536):
            answer += chunk
        return answer


def test_tls_with_client_certificates_and_a_key_with_a_password(
    hello: Any, pool: RealPool, free_port: Any
) -> None:
    cert, key = certificate(pool.directory)
    client = certificate(pool.directory, "client")
    (pool.directory / "locked").mkdir()
    locked = [str(path) for path in certificate(pool.directory / "locked", password=b"open sesame")]
    pool.env["KEY_PASSWORD"] = "open sesame"
    tls = {
        "plain": {"cert": str(cert), "key": str(key)},
        "strict": {
            "cert": str(cert), "key": str(key), "ca": str(client[0]), "client_auth": "required", "min_version": "1.3",
        },
        "locked": {"cert": locked[0], "key": locked[1], "password_env": "KEY_PASSWORD"},
    }  # fmt: skip
    ports = {name: free_port() for name in tls}
    items = hello(**{name: {"bind": f"127.0.0.1:{ports[name]}", "tls": each} for name, each in tls.items()})
    assert items["plain"]["expose"].startswith("https://")
    assert b"200 OK" in ask_tls(ports["plain"], cert)
    assert b"200 OK" in ask_tls(ports["locked"], Path(locked[0]))
    assert b"200 OK" in ask_tls(ports["strict"], cert, client)
    try:
        answer = ask_tls(ports["strict"], cert)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    assert answer == b""
    pool.ok("restart")
    assert b"200 OK" in ask_tls(ports["plain"], cert)


def test_key_that_only_root_can_read_serves_a_worker_of_user_nobody(
    hello: Any, pool: RealPool, free_port: Any
) -> None:
    pool.open_to_all()
    cert, key = certificate(pool.directory)
    key.chmod(0o600)
    port = free_port()
    tls = {"cert": str(cert), "key": str(key)}
    hello(web={"bind": f"127.0.0.1:{port}", "user": "nobody", "tls": tls})
    assert b"200 OK" in ask_tls(port, cert)
    (worker,) = pool.items()["web"]["pids"]
    assert Path(f"/proc/{worker}").stat().st_uid != 0
    held = descriptors(worker).values()
    assert {target for target in held if "memfd" in target} == {"/memfd:poolctl-tally (deleted)"}
