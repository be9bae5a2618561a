"""Zygotes fork workers on request, and find what an import leaves that forks cannot share."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.bootstrap import command
from poolctl.keeper import wire
from poolctl.runners.worker_spec import preload_spec, spec_file, worker_spec
from poolctl.worker.tally import create_tally_page
from poolctl.worker.zygote import ProcessSnapshot
from tests.deadline import wait_until
from tests.processes import is_alive

SCRIPT = """
import os, sys
from poolctl.keeper import wire
from poolctl.worker.zygote import serve_forks

fork, failures = os.fork, int(sys.argv[2])

def fork_or_fail():
    global failures
    if failures:
        failures -= 1
        raise BlockingIOError(11, "no process left")
    return fork()

os.fork = fork_or_fail

def role(fds):
    os.write(fds[0], b"forked")
    os._exit(0)

serve_forks(wire.socket_from_fd(int(sys.argv[1])), {"worker": role})
"""

Serve = Callable[[int], tuple["subprocess.Popen[bytes]", socket.socket]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A process that serves forks, of which the first so many fail, and the socket for requests to it."""
    started: list[subprocess.Popen[bytes]] = []
    opened: list[socket.socket] = []

    def start(failures: int = 0) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = wire.pair()
        with theirs:
            argv = [sys.executable, "-c", SCRIPT, str(theirs.fileno()), str(failures)]
            started.append(subprocess.Popen(argv, pass_fds=[theirs.fileno()], start_new_session=True))
        opened.append(ours)
        ours.settimeout(60)
        return started[-1], ours

    yield start
    for requests in opened:
        requests.close()
    for process in started:
        process.kill()
        process.wait(60)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ask(requests: socket.socket, number: int) -> wire.Message:
    """The answer to a request for a fork, which has done what it is for if there is one."""
    read, write = os.pipe()
    wire.send(requests, {"op": "worker", "id": number}, [write])
    os.close(write)
    received = wire.receive(requests, wait=True)
    assert received is not None
    with open(read, "rb") as said:
        assert said.read() == (b"forked" if "pid" in received[0] else b"")
    return received[0]


def test_zygote_forks_for_each_request_until_the_socket_is_closed(serve: Serve) -> None:
    process, requests = serve(0)
    assert [ask(requests, number)["id"] for number in (1, 2)] == [1, 2]
    requests.close()
    assert process.wait(60) == 0


def test_request_is_refused_when_forking_fails(serve: Serve) -> None:
    _, requests = serve(1)
    assert ask(requests, 1) == {"id": 1, "error": "cannot fork: no process left"}
    assert "pid" in ask(requests, 2)


def test_unchanged_process_has_left_nothing() -> None:
    assert ProcessSnapshot.of_this_process().describe_leftovers_after_wait() == ""


def test_thread_is_reported_by_its_name() -> None:
    before, over = ProcessSnapshot.of_this_process(), threading.Event()
    thread = threading.Thread(target=over.wait, name="ticker")
    thread.start()
    try:
        assert before.describe_leftovers_after_wait() == "started the thread 'ticker'"
    finally:
        over.set()
        thread.join()
    wait_until(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists())
    assert before.describe_leftovers_after_wait() == ""


def test_child_process_without_a_wait_is_reported() -> None:
    before = ProcessSnapshot.of_this_process()
    with subprocess.Popen(["sleep", "50"]) as child:
        assert before.describe_leftovers_after_wait() == f"started the process {child.pid}"
        child.kill()


def test_descriptors_are_called_by_what_they_are() -> None:
    before = ProcessSnapshot.of_this_process()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        select.epoll(),
        open(os.devnull),
    ):
        port = listener.getsockname()[1]
        three = f"opened a socket, opened a connection to 127.0.0.1:{port}, opened an event loop"
        assert before.describe_leftovers_after_wait() == f"{three} and 1 more"
    assert before.describe_leftovers_after_wait() == ""


def test_descriptor_with_another_target_is_reported() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    before = ProcessSnapshot.of_this_process()
    read, write = os.pipe()
    os.dup2(read, fd)
    for each in (read, write):
        os.close(each)
    try:
        assert before.describe_leftovers_after_wait() == "opened a pipe"
    finally:
        os.close(fd)


# A thread that no Python code runs in, as a library starts it, until it is cancelled.
NATIVE = """
import ctypes
libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of modules that can be imported; afterwards they and their threads are gone."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        module = sys.modules.pop(name)
        if isinstance(thread := getattr(module, "thread", None), ctypes.c_ulong):
            module.libc.pthread_cancel(thread)
            module.libc.pthread_join(thread, None)


def said_of(name: str) -> str:
    """What is said of the threads that the import of the module has left."""
    before = ProcessSnapshot.of_this_process()
    importlib.import_module(name)
    return before.describe_leftovers_after_wait()


def test_native_thread_has_the_name_that_its_library_gave_it(modules: Path) -> None:
    (modules / "shop.py").write_text(NATIVE + 'libc.pthread_setname_np(thread, b"flusher")\n')
    assert said_of("shop") == "started a thread 'flusher'"


def test_thread_that_its_library_can_lose_in_a_fork_is_ignored(modules: Path) -> None:
    (modules / "shop.py").write_text(NATIVE + 'libc.pthread_setname_np(thread, b"jemalloc_bg_thd")\n')
    assert said_of("shop") == ""


# A zygote's process, and the app zygotes that it forks.


class Zygote:
    """A process that forks workers and app zygotes, whose supervisor the test is."""

    def __init__(self) -> None:
        self.requests, theirs = wire.pair()
        self.requests.settimeout(60)
        script = f'exec 3<&{theirs.fileno()}; exec "$@"'
        argv = ["bash", "-c", script, "bash", *command(sys.executable, "worker", "zygote")]
        with theirs:
            self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], start_new_session=True)

    def close(self) -> None:
        self.requests.close()
        assert self.process.wait(60) == 0


class Imported:
    """An app zygote, its messages and its output."""

    def __init__(self, zygote: Zygote, server: ServerConfig) -> None:
        self.control, theirs = wire.pair()
        self.control.settimeout(60)
        self._output, write = os.pipe()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        settings = preload_spec(server, interpreter=sys.executable, open_files=limits)
        spec = spec_file({**settings, "server": server.name})
        with theirs:
            wire.send(zygote.requests, {"op": "app", "id": 1}, [spec, theirs.fileno(), write])
        for fd in (spec, write):
            os.close(fd)
        received = wire.receive(zygote.requests, wait=True)
        assert received is not None
        self.pid = int(received[0]["pid"])
        wire.send(self.control, {"order": "go"})

    def message(self) -> wire.Message | None:
        received = wire.receive(self.control, wait=True)
        return None if received is None else received[0]

    def output(self) -> str:
        """All that it has printed until it has closed its output."""
        with open(self._output) as printed:
            return printed.read()

    def close(self) -> None:
        self.control.close()
        wait_until(lambda: not is_alive(self.pid))


@pytest.fixture(scope="module")
def parent() -> Iterator[Zygote]:
    made = Zygote()
    assert wire.receive(made.requests, wait=True) == ({"event": "up"}, [])
    yield made
    made.close()


@pytest.fixture
def imported(parent: Zygote, tmp_path: Path) -> Iterator[Callable[..., Imported]]:
    made: list[Imported] = []

    def start(text: str, **keys: object) -> Imported:
        (tmp_path / "shop.py").write_text(text)
        settings: dict[str, Any] = {"app": "shop:app", "app_dir": str(tmp_path), "preload": True, **keys}
        made.append(Imported(parent, ServerConfig(name="web", bind="127.0.0.1:8080", **settings)))
        return made[-1]

    yield start
    for each in made:
        each.close()


APP = "async def app(scope, receive, send): pass\n"


def test_app_zygote_is_up_when_it_has_imported_and_runs_no_exit_function(
    imported: Callable[..., Imported],
) -> None:
    text = "import atexit\natexit.register(print, 'over')\nprint('imported')\n" + APP
    app = imported(text)
    assert app.message() == {"event": "up"}
    assert app.output() == "imported\n"
    name = Path(f"/proc/{app.pid}/comm").read_text()
    assert name == "poolctl-app\n"
    wire.send(app.control, {"op": "worker", "id": 5}, [])
    reply = app.message()
    assert reply is not None
    assert (reply["id"], reply["pid"] != app.pid) == (5, True)


def test_import_that_starts_a_native_thread_is_refused_with_a_fix(imported: Callable[..., Imported]) -> None:
    text = "its import started a thread, which no fork can share: each worker imports it instead"
    fix = 'env = { OMP_NUM_THREADS = "1" } prevents threads of numerical libraries'
    app = imported(NATIVE + APP)
    assert app.message() == {"event": "unusable", "problem": f"{text} ({fix})"}
    assert app.output() == f"preload = true has no effect: {text} ({fix})\n"


def test_import_may_keep_a_library_open(imported: Callable[..., Imported]) -> None:
    app = imported("import os\nkept = os.open('/proc/self/exe', os.O_RDONLY)\n" + APP)
    assert app.message() == {"event": "up"}


PRINTS = """
async def app(scope, receive, send):
    print(os.getcwd(), os.environ["POOLCTL_INDEX"], flush=True)
    os._exit(0)
"""


def test_worker_of_an_app_zygote_runs_the_imported_application_as_the_import_has_left_it(
    imported: Callable[..., Imported], tmp_path: Path
) -> None:
    app = imported("import os\nos.chdir('/')\n" + PRINTS)
    assert app.message() == {"event": "up"}
    server = ServerConfig(name="web", bind="127.0.0.1:8080", app="shop:app", app_dir=str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = worker_spec(server, interpreter=sys.executable, listeners=0, tls_files=0, open_files=limits)
    spec, page = spec_file({**settings, "orphanage": None, "index": 3}), create_tally_page()
    output, write = os.pipe()
    control, theirs = wire.pair()
    pair = wire.pair()
    with control, theirs, pair[0], pair[1]:
        fds = [spec, theirs.fileno(), write, *(each.fileno() for each in pair), page]
        wire.send(app.control, {"op": "worker", "id": 5}, fds)
        for fd in (spec, write, page):
            os.close(fd)
        wire.send(control, {"order": "go"})
        with open(output) as printed:
            assert printed.read() == "/ 3\n"
