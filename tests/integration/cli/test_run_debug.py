"""`run --debug`: one server in the terminal, of this very process, where breakpoints work."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import server
from tests.http_get import Reply, get, refused
from tests.real_pool import HELLO_APP, RealPool
from tests.terminal import Terminal

STOPS = HELLO_APP.replace(
    '    await send({"type": "http.response.start"',
    '    breakpoint()\n    await send({"type": "http.response.start"',
)


@pytest.mark.capability
def test_a_breakpoint_stops_in_the_terminal_and_goes_on_from_there(real_pool: RealPool) -> None:
    port = real_pool.write_hello("other", "web")["web"]
    real_pool.write("hello.py", STOPS)
    with Terminal(real_pool, "run", "--debug", "web") as terminal:
        said = f"web on http://127.0.0.1:{port} runs in this terminal, Ctrl-C stops it"
        terminal.until(lambda shown: said in shown)
        terminal.until(lambda shown: "Application startup complete" in shown)
        replies: list[Reply] = []
        asker = threading.Thread(target=lambda: replies.append(get(port, "/here")))
        asker.start()
        terminal.until(lambda shown: "(Pdb)" in shown)
        terminal.press("p scope['path'], __import__('os').getpid()\n")
        terminal.until(lambda shown: f"('/here', {terminal.process.pid})" in shown)
        terminal.press("c\n")
        asker.join(60)
        assert [reply.status for reply in replies] == [200]
        terminal.until(lambda shown: "GET /here HTTP/1.1" in shown)
        assert real_pool.run("status").code == 3, "there is no pool"
        terminal.press("\x03")
        assert terminal.end() == 130
    assert refused(port)
    assert real_pool.processes() == {}


def test_a_server_of_the_pool_has_to_be_stopped_before(real_pool: RealPool, until: Any) -> None:
    port = real_pool.write_hello("other", "web")["web"]
    real_pool.ok("start")
    done = real_pool.run("run", "--debug", "web")
    assert (done.code, "poolctl stop web" in done.stderr) == (8, True), str(done)
    real_pool.ok("stop", "web")
    debugged = real_pool.spawn("run", "--debug", "web")
    until(lambda: not refused(port))
    assert get(port).status == 200
    assert real_pool.items()["other"]["ready"]
    debugged.send_signal(signal.SIGTERM)
    assert debugged.wait(60) == 0
    real_pool.ok("start", "web")


def test_a_program_runs_with_its_sockets_and_surroundings_and_its_status_is_that_of_the_command(
    real_pool: RealPool, until: Any, free_port: Any
) -> None:
    port = free_port()
    real_pool.write(
        "program.py",
        """
        import os, socket
        listener = socket.socket(fileno=3)
        assert os.environ["LISTEN_PID"] == str(os.getpid())
        assert os.get_blocking(3), "as systemd hands it over, and as the pool does"
        while True:
            connection, _ = listener.accept()
            connection.recv(4096)
            body = f"{os.getppid()} {os.environ['WORD']} {os.path.basename(os.getcwd())}".encode()
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
            connection.close()
        """,
    )
    (real_pool.directory / "inside").mkdir()
    command = ["python3", "../program.py"]
    table = server("it", bind=f"127.0.0.1:{port}", command=command, env={"WORD": "hello"}, cwd="inside")
    real_pool.write("pool.toml", table)
    debugged = real_pool.spawn("run", "--debug")
    until(lambda: not refused(port))
    assert get(port).text == f"{debugged.pid} hello inside"
    debugged.send_signal(signal.SIGTERM)
    assert debugged.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "--debug runs one server, and 2 are selected"),
        (["nothing"], 4, "nothing"),
        (["a", "--watch"], 2, "--debug and --watch cannot be combined"),
        (["a", "--", "true"], 2, "--debug and a command cannot be combined"),
    ],
)
def test_impossible_debug_run_is_refused_with_the_reason(
    real_pool: RealPool, args: list[str], code: int, words: str
) -> None:
    real_pool.write_hello("a", "b")
    done = real_pool.run("run", "--debug", *args)
    assert (done.code, words in done.stderr) == (code, True), str(done)


def test_an_app_that_does_not_start_ends_with_its_traceback(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    real_pool.write("hello.py", "raise RuntimeError('no settings')\n")
    done = real_pool.run("run", "--debug", "web")
    assert done.code == 1
    assert "no settings" in done.stderr
    assert "hello.py" in done.stderr


@pytest.mark.heavy
def test_debug_run_uses_the_servers_user(real_pool: RealPool, until: Any) -> None:
    real_pool.open_to_all()
    port = real_pool.write_hello("web", extra='user = "nobody"\ncwd = "/"\nenv = { PYTHONUTF8 = "1" }')["web"]
    real_pool.write(
        "hello.py",
        f"import os, sys\nWHO = (os.geteuid(), sys.flags.utf8_mode)\n{HELLO_APP}".replace(
            'b"hello from "', "str(WHO).encode()"
        ),
    )
    debugged = real_pool.spawn("run", "--debug", "web")
    until(lambda: not refused(port))
    assert get(port).text.startswith("(65534, 1)")
    debugged.send_signal(signal.SIGINT)
    assert debugged.wait(60) == 130


def test_secrets_of_the_pool_are_not_in_its_environment(real_pool: RealPool, until: Any) -> None:
    port = real_pool.write_hello("web")["web"]
    real_pool.env |= {"PAGE_TOKEN": "secret-token", "OTHER": "other"}
    real_pool.append('[dashboard]\ntoken_env = "PAGE_TOKEN"\n')
    debugged = real_pool.spawn("run", "--debug", "web")
    until(lambda: not refused(port))
    get(port)  # its program has taken the place of the command's
    block = Path(f"/proc/{debugged.pid}/environ").read_text()
    assert "OTHER=other" in block
    assert "secret-token" not in block
