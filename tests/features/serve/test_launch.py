"""What `poolctl serve` prepares before it becomes the server."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.configuration import server
from tests.features.serve.test_serve import refuses
from tests.http_get import get
from tests.real_pool import RealPool


@pytest.mark.integration
def test_command_becomes_the_process(real_pool: RealPool, until: Any, free_port: Any) -> None:
    bound, port = free_port(), free_port()
    program = real_pool.write(
        "program.py",
        """
        import os, socket
        listener = socket.socket(fileno=3)
        while True:
            connection, _ = listener.accept()
            connection.recv(4096)
            body = str(os.getpid()).encode()
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
            connection.close()
        """,
    )
    table = server("it", bind=f"127.0.0.1:{bound}", command=["python3", str(program)])
    real_pool.write("pool.toml", table)
    process = real_pool.spawn("serve", "--listen", f"127.0.0.1:{port}")
    until(lambda: not refuses(port))
    assert get(port).text == str(process.pid)
    assert refuses(bound)
    for option in (["--health", ":0"], ["--stop-delay", "1s"]):
        done = real_pool.run("serve", *option)
        assert (done.code, f"{option[0]} needs an app, and it is a command" in done.stderr) == (2, True)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "serve runs one server, and 2 are selected"),
        (["nothing"], 4, "nothing"),
        (["a", "--listen", "elsewhere"], 2, "--listen: "),
        (["a", "--health", "elsewhere"], 2, "--health: "),
        (["a", "--stop-delay", "long"], 2, "--stop-delay: "),
    ],
)
def test_impossible_command_is_refused_with_the_reason(
    real_pool: RealPool, args: list[str], code: int, words: str
) -> None:
    real_pool.write_hello("a", "b")
    done = real_pool.run("serve", *args)
    assert (done.code, words in done.stderr) == (code, True), str(done)


@pytest.mark.integration
def test_port_in_use_is_named(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = real_pool.run("serve", "--health", f"127.0.0.1:{port}")
    assert done.code == 1
    assert "--health: " in done.stderr
    assert str(port) in done.stderr
