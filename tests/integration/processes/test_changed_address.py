"""Changes of a server's address that cannot be had at once: the old one serves until the new one does, or goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.http_get import asked_all_the_time, get, refused
from tests.ports import claim_port
from tests.real_pool import COMMAND_TIMEOUT_SECONDS, WHO_APP, RealPool
from tests.service_manager import run_with_socket

BROKEN = "raise RuntimeError('the new code is broken')\n"
OVERLAPPING = [
    ("127.0.0.1:{}", "0.0.0.0:{}"), ("0.0.0.0:{}", "127.0.0.1:{}"), ("127.0.0.1:{}", ":{}"), (":{}", "127.0.0.1:{}"),
    ("0.0.0.0:{}", ":{}"), (":{}", "0.0.0.0:{}"), ("localhost:{}", "127.0.0.1:{}"), ("127.0.0.1:{}", "[::]:{}"),
]  # fmt: skip


def write(pool: RealPool, who: str, bind: str, *, keys: str = "", code: str = WHO_APP) -> None:
    """One server that answers `who`."""
    pool.write("who.py", code)
    pool.write("pool.toml", table("web", who, bind, keys))


def table(name: str, who: str, bind: str, keys: str = "") -> str:
    text = f'[[server]]\nname = "{name}"\nbind = "{bind}"\nenv = {{ WHO = "{who}" }}\n{keys}\n'
    return text if "command" in keys else f'{text}app = "who:app"\n'


# Acceptors of connections, and what has to be true before one accepts.
KEYS = {
    "plain": "",
    "limited": "http = { max_connections = 50 }",
    "probed": 'health = { readiness = { http = "/" } }',
    "workers": "workers = 2",
}


def assert_at_most_one_reset(answers: list[str]) -> None:
    """One client asks at a time, so the backlog of the old listener has at most its connection."""
    lost = [answer for answer in answers if answer not in ("old", "new")]
    assert len(lost) <= 1, lost
    assert not any("refused" in answer for answer in lost), lost
    assert {"old", "new"} <= {*answers}


def ipv6_refuses(port: int) -> bool:
    try:
        return get(f"[::1]:{port}").text != "new"
    except OSError:
        return True


@pytest.mark.parametrize("keys", list(KEYS))
def test_an_overlapping_address_is_accepted_from_once_its_workers_are_ready(
    pool: RealPool, keys: str
) -> None:
    port = claim_port()
    write(pool, "old", f"0.0.0.0:{port}", keys=KEYS[keys])
    pool.ok("start")
    write(pool, "new", f"127.0.0.1:{port}", keys=KEYS[keys])
    with asked_all_the_time(port) as answers:
        pool.ok("reload")
        wait_until(lambda: "new" in answers)
    assert_at_most_one_reset(answers)


@pytest.mark.parametrize(("old", "new"), OVERLAPPING)
def test_an_overlapping_address_replaces_the_old_one_without_a_refusal_once_its_code_starts(
    pool: RealPool, old: str, new: str
) -> None:
    port = claim_port()
    write(pool, "old", old.format(port))
    pool.ok("start")
    pids = pool.items()["web"]["pids"]
    write(pool, "new", new.format(port), code=BROKEN)
    with asked_all_the_time(port) as answers:
        done = pool.run("reload")
        assert (done.code, "the new code is broken" in done.stderr) == (1, True), str(done)
    assert {*answers} == {"old"}
    assert pool.items()["web"]["pids"] == pids
    # The file still differs, and the next reload of code that works applies it.
    write(pool, "new", new.format(port))
    with asked_all_the_time(port) as answers:
        pool.ok("reload")
        wait_until(lambda: "new" in answers)
    assert_at_most_one_reset(answers)
    assert pool.run("reload", "--dry-run").code == 0
    assert ipv6_refuses(port) is not ("[::]" in new or new.startswith(":"))


def test_an_overlapping_address_that_a_stranger_has_ends_nothing(pool: RealPool) -> None:
    port = claim_port()
    write(pool, "old", f"127.0.0.1:{port}")
    pool.ok("start")
    pids = pool.items()["web"]["pids"]
    with socket.create_server(("127.0.0.2", port)):
        write(pool, "new", f"0.0.0.0:{port}")
        with asked_all_the_time(port) as answers:
            done = pool.run("reload")
            assert (done.code, "in use" in done.stderr) == (1, True), str(done)
        assert {*answers} == {"old"}
        assert pool.items()["web"]["pids"] == pids
    pool.ok("reload")
    assert get(port).text == "new"


def test_a_failed_change_of_a_sleeping_server_s_address_leaves_it_asleep_at_the_old_one(
    pool: RealPool, until: Callable[..., Any]
) -> None:
    port, keys = claim_port(), "scale = { min = 0 }"
    write(pool, "old", f"127.0.0.1:{port}", keys=keys)
    pool.ok("start")
    with socket.create_server(("127.0.0.2", port)):
        write(pool, "new", f"0.0.0.0:{port}", keys=keys)
        done = pool.run("reload")
        assert (done.code, "in use" in done.stderr) == (1, True), str(done)
        until(lambda: not refused(port))
        assert get(port).text == "old"
    pool.ok("reload")
    assert get(port).text == "new"


PROGRAM = """
import http.server, os, signal, socket, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["WHO"].encode())

    def log_message(self, *_):
        pass

if os.environ.get("BROKEN"):
    sys.exit("the new code is broken")
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
where = int(sys.argv[1])
server = http.server.ThreadingHTTPServer(("", where), Handler, bind_and_activate=where > 100)
if where <= 100:
    server.socket = socket.socket(fileno=where)
server.serve_forever()
"""
WITHOUT_OVERLAP = {
    "app": "overlap = false",
    "program on the pool's socket": f'command = ["{sys.executable}", "program.py", "{{fd}}"]\noverlap = false',
    "program that binds itself": f'command = ["{sys.executable}", "program.py", "{{port}}"]\nsocket = "program"',
}


@pytest.mark.parametrize("keys", list(WITHOUT_OVERLAP))
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_previous_configuration_starts_again_where_the_old_process_had_to_end(
    pool: RealPool, keys: str, host: str
) -> None:
    port = claim_port()
    pool.write("program.py", PROGRAM)
    write(pool, "old", f"127.0.0.1:{port}", keys=WITHOUT_OVERLAP[keys])
    pool.ok("start")
    write(pool, "new", f"{host}:{port}", keys=WITHOUT_OVERLAP[keys])
    pool.replace("WHO =", 'BROKEN = "1", WHO =')
    pool.write("who.py", f"import os\nif os.environ.get('BROKEN'): {BROKEN}{WHO_APP}")
    done = pool.run("reload")
    assert (done.code, "the new code is broken" in done.stderr) == (1, True), str(done)
    assert "was started again with its previous configuration" in done.stderr
    assert get(port).text == "old"
    assert pool.items()["web"]["state"] == "running"
    pool.replace('BROKEN = "1", ', "")
    pool.ok("reload")
    assert get(port).text == "new"


def write_pair(pool: RealPool, one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Two servers, given by name, address and keys; each answers its name. `BROKEN` in its environment breaks one."""
    pool.write("who.py", f"import os\nif os.environ.get('BROKEN'): {BROKEN}{WHO_APP}")
    pool.write("pool.toml", "".join(table(name, name, bind, keys) for name, bind, keys in (one, other)))


def break_server(pool: RealPool, name: str) -> None:
    pool.replace(f'WHO = "{name}"', f'WHO = "{name}", BROKEN = "1"')


@pytest.mark.parametrize("keys", list(KEYS))
def test_swapped_addresses_change_hands_without_a_loss(pool: RealPool, keys: str) -> None:
    one, two = f"127.0.0.1:{claim_port()}", f"127.0.0.1:{claim_port()}"
    write_pair(pool, ("a", one, KEYS[keys]), ("b", two, KEYS[keys]))
    pool.ok("start")
    write_pair(pool, ("a", two, KEYS[keys]), ("b", one, KEYS[keys]))
    with asked_all_the_time(port_of(one)) as first, asked_all_the_time(port_of(two)) as second:
        pool.ok("reload")
        wait_until(lambda: first[-1] == "b" and second[-1] == "a")
    for answers, before, after in ((first, "a", "b"), (second, "b", "a")):
        switch = answers.index(after)
        assert {*answers[:switch]} == {before}
        assert {*answers[switch:]} == {after}
    assert pool.run("reload", "--dry-run").code == 0


def port_of(bind: str) -> int:
    return int(bind.rpartition(":")[2])


@pytest.mark.parametrize("broken", ["a", "b"])
def test_servers_swap_addresses_only_if_both_can(pool: RealPool, broken: str) -> None:
    one, two = f"127.0.0.1:{claim_port()}", f"127.0.0.1:{claim_port()}"
    write_pair(pool, ("a", one, ""), ("b", two, ""))
    pool.ok("start")
    before = pool.items()
    write_pair(pool, ("a", two, ""), ("b", one, ""))
    break_server(pool, broken)
    with asked_all_the_time(port_of(one)) as first, asked_all_the_time(port_of(two)) as second:
        done = pool.run("reload")
    assert (done.code, "the new code is broken" in done.stderr) == (1, True), str(done)
    assert f"was to exchange addresses with {broken}" in done.stderr
    assert ({*first}, {*second}) == ({"a"}, {"b"})
    after = pool.items()
    assert [after[name]["pids"] for name in "ab"] == [before[name]["pids"] for name in "ab"]
    write_pair(pool, ("a", two, ""), ("b", one, ""))
    pool.ok("reload")
    assert (get(port_of(one)).text, get(port_of(two)).text) == ("b", "a")


WAITING_APP = f"""
import os, pathlib, time
me = os.environ["WHO"]
pathlib.Path(me + ".imports").touch()
while not pathlib.Path(me + ".continues").exists():
    time.sleep(0.02)
if os.environ.get("BROKEN"): {BROKEN}{WHO_APP}"""


def test_a_server_that_leaves_an_exchange_does_not_close_the_other_s_listener(pool: RealPool) -> None:
    one, two = f"127.0.0.1:{claim_port()}", f"127.0.0.1:{claim_port()}"
    write_pair(pool, ("a", one, ""), ("b", two, ""))
    pool.ok("start")
    write_pair(pool, ("a", two, ""), ("b", one, ""))
    break_server(pool, "b")
    pool.write("who.py", WAITING_APP)
    with asked_all_the_time(port_of(two)) as answers:
        reload = pool.spawn("reload")
        wait_until(lambda: all((pool.directory / f"{name}.imports").exists() for name in "ab"))
        pool.ok("stop", "a")
        pool.write("b.continues", "")
        reload.communicate(timeout=COMMAND_TIMEOUT_SECONDS)
        assert reload.returncode == 1
        wait_until(lambda: refused(port_of(one)))
    assert {*answers} == {"b"}
    assert get(port_of(two)).text == "b"


@pytest.mark.parametrize("both", [False, True])
def test_servers_exchange_addresses_that_overlap(pool: RealPool, both: bool) -> None:
    one, two = claim_port(), claim_port()
    write_pair(pool, ("a", f"127.0.0.1:{one}", ""), ("b", f"127.0.0.1:{two}", ""))
    pool.ok("start")
    wide = f"0.0.0.0:{two}" if both else f"127.0.0.1:{two}"
    write_pair(pool, ("a", wide, ""), ("b", f"0.0.0.0:{one}", ""))
    pool.ok("reload", "--timeout", "60")
    assert (get(one).text, get(two).text) == ("b", "a")
    assert pool.run("reload", "--dry-run").code == 0


def test_servers_do_not_swap_addresses_if_one_waits_for_a_stopped_server(pool: RealPool) -> None:
    one, two, three = (f"127.0.0.1:{claim_port()}" for _ in range(3))
    needs_c, third = 'depends_on = ["c"]', table("c", "c", three)
    write_pair(pool, ("a", one, ""), ("b", two, needs_c))
    pool.append(third)
    pool.ok("start")
    pool.ok("stop", "c", "--no-deps")
    before = pool.items()
    write_pair(pool, ("a", two, ""), ("b", one, needs_c))
    pool.append(third)
    done = pool.run("reload", "--timeout", "60")
    assert (done.code, "b: waits for c, which is stopped" in done.stderr) == (1, True), str(done)
    assert "poolctl start c" in done.stderr
    after = pool.items()
    assert [after[name]["pids"] for name in "ab"] == [before[name]["pids"] for name in "ab"]
    assert (get(port_of(one)).text, get(port_of(two)).text) == ("a", "b")
    pool.ok("start", "c")
    pool.ok("reload")
    assert (get(port_of(one)).text, get(port_of(two)).text) == ("b", "a")


def test_a_stopped_server_does_not_share_an_address_to_which_another_went_back(pool: RealPool) -> None:
    one, two = f"127.0.0.1:{claim_port()}", f"127.0.0.1:{claim_port()}"
    write_pair(pool, ("a", one, ""), ("b", two, ""))
    pool.ok("start")
    pool.ok("stop", "a")
    write_pair(pool, ("a", two, ""), ("b", one, ""))
    break_server(pool, "b")
    assert pool.run("reload").code == 1
    done = pool.run("start", "a")
    message = "its address is used by b, which went back to its previous configuration"
    assert (done.code, message in done.stderr) == (1, True), str(done)
    assert get(port_of(two)).text == "b"
    write_pair(pool, ("a", two, ""), ("b", one, ""))
    pool.ok("reload")
    pool.ok("start", "a")
    assert (get(port_of(one)).text, get(port_of(two)).text) == ("b", "a")


def test_a_server_keeps_an_address_that_another_takes_over_until_its_new_one_can_be_had(
    pool: RealPool,
) -> None:
    one, two = f"127.0.0.1:{claim_port()}", f"127.0.0.1:{claim_port()}"
    write_pair(pool, ("a", one, ""), ("b", two, ""))
    pool.ok("start")
    with socket.create_server(("127.0.0.1", taken := claim_port())):
        write_pair(pool, ("a", f"127.0.0.1:{taken}", ""), ("b", one, ""))
        with asked_all_the_time(port_of(one)) as first, asked_all_the_time(port_of(two)) as second:
            done = pool.run("reload")
        assert (done.code, "in use" in done.stderr) == (1, True), str(done)
        assert ({*first}, {*second}) == ({"a"}, {"b"})
    with asked_all_the_time(port_of(one)) as first:
        pool.ok("reload")
        wait_until(lambda: "b" in first)
    assert {*first} == {"a", "b"}
    assert get(taken).text == "a"
    assert refused(port_of(two))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_inherited_socket_serves_where_an_address_cannot_be_had(
    pool: RealPool, host: str, until: Callable[..., Any]
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    write(pool, "old", "fd:web")
    with run_with_socket(pool, listener):
        until(lambda: not refused(port))
        assert get(port).text == "old"
        pids = pool.items()["web"]["pids"]
        # The socket that systemd holds keeps the port.
        write(pool, "new", f"{host}:{port}")
        with asked_all_the_time(port) as answers:
            done = pool.run("reload")
        assert (done.code, "in use" in done.stderr) == (1, True), str(done)
        assert {*answers} == {"old"}
        assert pool.items()["web"]["pids"] == pids
        other = claim_port()
        write(pool, "new", f"{host}:{other}", code=BROKEN)
        with asked_all_the_time(port) as answers:
            assert pool.run("reload").code == 1
        assert {*answers} == {"old"}
        write(pool, "new", f"{host}:{other}")
        pool.ok("reload")
        assert get(other).text == "new"


# New code that stays in its import until a file `go` is there.
WAITING = """
import os, time
while os.environ.get("WAITS") and not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
    time.sleep(0.01)
"""


@contextlib.contextmanager
def supervisor_replaced_while_new_code_starts(pool: RealPool, who: str) -> Iterator[None]:
    """Reload; once the changed server `who` has begun to start, kill the supervisor. At the end, its code goes on."""
    pool.replace(f'WHO = "{who}"', f'WHO = "{who}", WAITS = "1"')
    code = pool.directory / "who.py"
    code.write_text(WAITING + code.read_text())
    name = next(iter({who} & {*pool.items()}), "web")
    before = pool.info()["supervisor_pid"]
    reload = pool.spawn("reload")
    wait_until(lambda: len(pool.items()[name]["pids"]) == 2)
    os.kill(before, signal.SIGKILL)
    reload.communicate(timeout=COMMAND_TIMEOUT_SECONDS)
    wait_until(lambda: pool.info()["supervisor_pid"] != before)
    wait_until(lambda: len(pool.items()[name]["pids"]) == 2)
    yield
    pool.write("go", "")


def test_swapped_addresses_change_hands_though_the_supervisor_is_replaced_meanwhile(pool: RealPool) -> None:
    one, two = f"127.0.0.1:{claim_port()}", f"127.0.0.1:{claim_port()}"
    write_pair(pool, ("a", one, ""), ("b", two, ""))
    pool.ok("start")
    write_pair(pool, ("a", two, ""), ("b", one, ""))
    with asked_all_the_time(port_of(one)) as first, asked_all_the_time(port_of(two)) as second:
        with supervisor_replaced_while_new_code_starts(pool, "b"):
            assert ({*first}, {*second}) == ({"a"}, {"b"})
        wait_until(lambda: first[-1] == "b" and second[-1] == "a")
    assert ({*first}, {*second}) == ({"a", "b"}, {"a", "b"})


@pytest.mark.parametrize(("old", "new"), OVERLAPPING[:4])
def test_an_overlapping_address_gets_no_connection_too_early_though_the_supervisor_is_replaced(
    pool: RealPool, old: str, new: str
) -> None:
    port = claim_port()
    write(pool, "old", old.format(port))
    pool.ok("start")
    write(pool, "new", new.format(port))
    with asked_all_the_time(port) as answers:
        with supervisor_replaced_while_new_code_starts(pool, "new"):
            asked = len(answers)
            wait_until(lambda: len(answers) > asked + 20)
            assert {*answers} == {"old"}
        wait_until(lambda: "new" in answers)
    assert_at_most_one_reset(answers)


def test_code_that_fails_at_an_overlapping_address_ends_nothing_though_the_supervisor_is_replaced(
    pool: RealPool, until: Callable[..., Any]
) -> None:
    port = claim_port()
    write(pool, "old", f"0.0.0.0:{port}")
    pool.ok("start")
    pids = pool.items()["web"]["pids"]
    write(pool, "new", f"127.0.0.1:{port}", code=BROKEN)
    with asked_all_the_time(port) as answers:
        with supervisor_replaced_while_new_code_starts(pool, "new"):
            pass
        until(lambda: pool.items()["web"]["pids"] == pids)
        asked = len(answers)
        wait_until(lambda: len(answers) > asked + 20)
    assert {*answers} == {"old"}
    assert pool.run("reload", "--dry-run").code == 3
    pool.write("who.py", WHO_APP)
    with asked_all_the_time(port) as answers:
        pool.ok("reload")
        wait_until(lambda: "new" in answers)
    assert_at_most_one_reset(answers)
