"""What `poolctl serve` prepares before it becomes the server."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.cli.outcome import Failure, UsageError
from poolctl.features.serve import _launch
from tests.configuration import server
from tests.features.serve.test_serve import refuses
from tests.http_get import get
from tests.ports import claim_port
from tests.processes import children, is_alive
from tests.real_pool import RealPool


@pytest.mark.integration
def test_command_runs_as_a_child_of_the_process(real_pool: RealPool, until: Any, free_port: Any) -> None:
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
    assert int(get(port).text) in children(process.pid)
    assert refuses(bound)
    for option in (["--health", ":0"], ["--stop-delay", "1s"]):
        done = real_pool.run("serve", *option)
        assert (done.code, f"{option[0]} needs an app, and it is a command" in done.stderr) == (2, True)


CHILD = """
import pathlib, signal, sys
def end(number, frame):
    pathlib.Path("asked").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path("began").touch()
while True:
    signal.pause()
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "stop_group", "code"),
    [
        pytest.param("python3 child.py; true", "after", 143, marks=pytest.mark.capability),
        ("trap '' TERM; python3 child.py; exit 3", "together", 3),
    ],
)
def test_children_of_a_command_are_asked_to_end_too(
    real_pool: RealPool, until: Any, script: str, stop_group: str, code: int
) -> None:
    real_pool.write("child.py", CHILD)
    real_pool.write("pool.toml", server("it", command=["sh", "-c", script], stop_group=stop_group))
    process = real_pool.spawn("serve")
    until((real_pool.directory / "began").exists)
    process.terminate()
    assert process.wait(60) == code
    assert (real_pool.directory / "asked").exists()


@pytest.mark.integration
@pytest.mark.parametrize("stop_group", ["after", "leader"])
def test_command_with_an_open_input_does_not_see_the_end_of_that_of_serve(
    real_pool: RealPool, stop_group: str
) -> None:
    program = "import select; print(select.select([0], [], [], 0)[0])"
    command = [sys.executable, "-c", program]
    real_pool.write("pool.toml", server("it", command=command, stdin="open", stop_group=stop_group))
    assert real_pool.run("serve").stdout == "[]\n"
    real_pool.write("pool.toml", server("it", command=command, stop_group=stop_group))
    assert real_pool.run("serve").stdout == "[0]\n"


@pytest.mark.integration
def test_ready_line_of_a_command_has_no_effect_and_is_warned_of(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", server("it", command=["echo", "hello"], ready_line="^ready"))
    done = real_pool.run("serve")
    assert (done.code, done.stdout) == (0, "hello\n")
    assert done.stderr.startswith("warning: it: ready_line has no effect without a pool")


@pytest.mark.integration
@pytest.mark.parametrize("words", [["serve", "web"], ["run", "--debug", "web"]])
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(
    real_pool: RealPool, until: Any, words: list[str], closed: str
) -> None:
    port = real_pool.write_hello("web")["web"]
    line = f"exec {shlex.join([*real_pool.command(), *words])} {closed}"
    process = subprocess.Popen(["sh", "-c", line], cwd=real_pool.directory, env=real_pool.env)
    try:
        until(lambda: not refuses(port) or process.poll() is not None)
        assert get(port).status == 200
        null = [os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull for number in range(3)]
        assert null.count(True) >= closed.count("&-")
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.integration
def test_command_ends_with_a_process_that_is_killed(real_pool: RealPool, until: Any) -> None:
    real_pool.write("pool.toml", server("it", command=["sleep", "60"]))
    process = real_pool.spawn("serve")
    (pid,) = until(lambda: children(process.pid))
    process.kill()
    until(lambda: not is_alive(pid))


HEARS = """
import os, pathlib, signal, sys
def hear(number, frame):
    pathlib.Path("heard").write_text(signal.Signals(number).name)
for number in (signal.SIGTSTP, signal.SIGUSR2, signal.SIGCONT, signal.SIGALRM, signal.SIGRTMIN):
    signal.signal(number, hear)
pathlib.Path("began").touch()
while True:
    signal.pause()
"""


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN])
def test_signals_besides_those_that_end_are_forwarded(
    real_pool: RealPool, until: Any, number: signal.Signals
) -> None:
    real_pool.write("program.py", HEARS)
    real_pool.write("pool.toml", server("it", command=["python3", "program.py"]))
    process = real_pool.spawn("serve")
    until((real_pool.directory / "began").exists)
    process.send_signal(number)
    until(lambda: (real_pool.directory / "heard").exists() and (real_pool.directory / "heard").read_text())
    assert (real_pool.directory / "heard").read_text() in (number.name, "SIGCONT")
    process.terminate()
    assert process.wait(60) == 143


@pytest.mark.integration
def test_order_to_end_is_the_stop_signal_of_the_command(real_pool: RealPool, until: Any) -> None:
    script = "trap '' TERM; trap 'exit 5' INT; touch began; while :; do sleep 0.1; done"
    real_pool.write("pool.toml", server("it", command=["sh", "-c", script], stop_signal="SIGINT"))
    process = real_pool.spawn("serve")
    until((real_pool.directory / "began").exists)
    process.terminate()
    assert process.wait(60) == 5


@pytest.mark.integration
def test_command_with_the_stop_group_leader_is_a_child_that_alone_is_asked_to_end(
    real_pool: RealPool, until: Any
) -> None:
    real_pool.write("child.py", CHILD)
    script = "trap 'exit 3' TERM; python3 child.py & while true; do wait $!; done"
    real_pool.write("pool.toml", server("it", command=["sh", "-c", script], stop_group="leader"))
    process = real_pool.spawn("serve")
    until((real_pool.directory / "began").exists)
    (shell,) = children(process.pid)
    (child,) = children(shell)
    process.terminate()
    try:
        assert process.wait(60) == 3
        assert not (real_pool.directory / "asked").exists()
        assert is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.integration
def test_program_that_finds_its_port_open_is_told_the_key(real_pool: RealPool, free_port: Any) -> None:
    port = free_port()
    program = f"import socket; socket.create_server(('127.0.0.1', {port}))"
    table = server("it", bind=f"127.0.0.1:{port}", command=[sys.executable, "-c", program])
    real_pool.write("pool.toml", table)
    done = real_pool.run("serve")
    assert done.code == 1
    assert 'write socket = "program"' in done.stderr.splitlines()[-1]
    real_pool.write("pool.toml", f'{table}socket = "program"\n')
    assert (real_pool.run("serve").code, real_pool.run("serve").stderr) == (0, "")


@pytest.mark.integration
@pytest.mark.parametrize(("workers", "index"), [(1, "0"), (2, "None")])
def test_worker_has_a_number_if_there_is_one_alone(real_pool: RealPool, workers: int, index: str) -> None:
    program = "import os; print(os.environ.get('POOLCTL_INDEX'))"
    real_pool.write("pool.toml", server("it", command=[sys.executable, "-c", program], workers=workers))
    assert real_pool.run("serve").stdout == f"{index}\n"


@pytest.mark.heavy_variants
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


def app(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": "127.0.0.1:8000", "app": "a:b", **keys})


def test_server_is_moved_to_another_address() -> None:
    assert _launch.listening_on(app(), "127.0.0.1:9000").key == "127.0.0.1:9000"
    assert _launch.listening_on(app(), "unix:/run/a.sock").key == "unix:/run/a.sock"
    with pytest.raises(UsageError, match="--listen: "):
        _launch.listening_on(app(), "nowhere")


def test_program_without_a_listener_cannot_be_moved() -> None:
    with pytest.raises(UsageError, match="web opens no listener that poolctl could move"):
        _launch.listening_on(ServerConfig(name="web", command=["x"]), "127.0.0.1:9000")


def test_health_address_is_opened_if_there_is_one() -> None:
    assert _launch.open_health_listeners("") == []
    port = claim_port()
    (sock,) = _launch.open_health_listeners(f"127.0.0.1:{port}")
    with pytest.raises(Failure):
        _launch.open_health_listeners(f"127.0.0.1:{port}")
    sock.close()
    with pytest.raises(UsageError, match="--health: "):
        _launch.open_health_listeners("nowhere")


def test_probes_that_make_a_request_are_plain_values() -> None:
    health = {"startup": {"tcp": True}, "readiness": {"http": "/up", "headers": {"X": "y"}}}
    found = _launch.http_probes(app(health=health))
    assert list(found) == ["readiness"]
    assert (found["readiness"]["http"], found["readiness"]["headers"]) == ("/up", {"X": "y"})
    assert type(found["readiness"]["headers"]) is dict
    assert _launch.http_probes(app()) == {}


@pytest.mark.slow
def test_event_loop_is_loaded_by_the_server_alone() -> None:
    text = "import sys, poolctl.features.serve._launch; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")
