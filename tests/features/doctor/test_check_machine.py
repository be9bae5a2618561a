"""What `doctor` checks of the machine: each with a machine on which what it looks for is true."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.address import parse
from poolctl.cli.pool_ref import PoolRef
from poolctl.config import EventsTable, Tables
from poolctl.feature import FEATURES
from poolctl.features.doctor import _check_machine
from poolctl.features.doctor._check import CheckResult, Machine
from poolctl.listeners.open_listener import BACKLOG
from poolctl.platform import process_start, user_name
from poolctl.runners.left_overs import ProcessNote, ProcessNotes
from poolctl.runners.local.memory_kills import control_groups
from tests import sandbox
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left
from tests.other_user import AS_OTHER_USER, python_for_others
from tests.ports import claim_port
from tests.processes import freeze, is_alive
from tests.real_pool import RealPool
from tests.sandbox import run_as

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Found = dict[str, list[dict[str, str]]]
UNLIMITED = resource.RLIM_INFINITY


def examined(
    pool: RealPool, *args: str, around: str = '"$@"', env: dict[str, str] | None = None
) -> tuple[int, Found]:
    """Exit code and findings by check; `around` is a script of the shell in which `"$@"` is the command."""
    done = subprocess.run(
        ["sh", "-ec", around, "sh", *pool.command(), "doctor", "-o", "json", *args],
        cwd=pool.directory, env=pool.env | (env or {}), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found: Found = {}
    for item in json.loads(done.stdout)["items"]:
        found.setdefault(item["check"], []).append(item)
    return done.returncode, found


def only(found: Found, check: str, status: str) -> dict[str, str]:
    """The one finding of that check, which has that status and, unless it is ok, a fix."""
    (one,) = [each for each in found[check] if each["status"] == status]
    assert status == "ok" or one["fix"]
    return one


def in_namespace(kinds: str, prepare: str, command: str = '"$@"') -> str:
    return f"exec unshare {kinds} sh -ec '{prepare}; exec {command}' sh \"$@\""


@pytest.mark.integration
def test_few_open_files(real_pool: RealPool) -> None:
    real_pool.write_hello("a", "b", "c")
    code, found = examined(real_pool, around='ulimit -n 64; exec "$@"')
    assert code == 1
    assert only(found, "open files", "problem")["message"].startswith("the limit is 64,")
    _, found = examined(real_pool, around='ulimit -Sn 100; exec "$@"')
    only(found, "open files", "warning")


@pytest.mark.integration
@needs_root
@pytest.mark.parametrize(("controller", "file", "value", "check"), [
    ("pids", "pids.max", "5", "processes"), ("memory", "memory.limit_in_bytes", "64M", "memory"),
])  # fmt: skip
def test_a_narrow_control_group(
    real_pool: RealPool, controller: str, file: str, value: str, check: str
) -> None:
    real_pool.write_hello("web")
    lines = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    path = next((path for _, names, path in lines if controller in names.split(",")), None)
    group = Path(f"/sys/fs/cgroup/{controller}{path}/poolctl-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / file).write_text(value)
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        code, found = examined(real_pool, around=f'echo $$ > {group}/cgroup.procs; exec "$@"')
        assert code == 1
        only(found, check, "problem")
    finally:
        group.rmdir()


def public(pool: RealPool) -> None:
    """Files that everybody can read, in a place that everybody can come to and write to."""
    pool.write_hello("web")
    for name in ("hello.py", "pool.toml"):
        shutil.copy(pool.directory / name, pool.runtime)
    pool.runtime.chmod(0o777)
    pool.directory = pool.runtime
    pool.python = python_for_others()


@pytest.mark.integration
def test_a_taken_port_with_its_holder(real_pool: RealPool) -> None:
    port = real_pool.write_hello("web")["web"]
    with socket.create_server(("127.0.0.1", port)):
        code, found = examined(real_pool)
    assert code == 1
    said = only(found, "ports", "problem")
    assert said["message"].startswith(f"web: port {port} is in use by ")
    assert said["message"].endswith(f" (pid {os.getpid()})")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("table", "keys"),
    [("metrics", ""), *([("operator", 'trusted = ["127.0.0.1"]')] if "operator" in FEATURES else [])],
)
def test_taken_port_of_a_table_is_reported(
    real_pool: RealPool, free_port: Any, table: str, keys: str
) -> None:
    real_pool.write_hello("web")
    text = (real_pool.directory / "pool.toml").read_text()
    port = free_port()
    real_pool.write("pool.toml", f'{text}\n[{table}]\nbind = "127.0.0.1:{port}"\n{keys}\n')
    with socket.create_server(("127.0.0.1", port)):
        code, found = examined(real_pool)
    assert code == 1
    assert only(found, "ports", "problem")["message"].startswith(f"[{table}]: port {port} is in use")


@pytest.mark.integration
def test_an_address_of_another_machine(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    text = (real_pool.directory / "pool.toml").read_text()
    real_pool.write("pool.toml", text.replace("127.0.0.1", "192.0.2.1"))
    code, found = examined(real_pool)
    assert code == 1
    assert "not an address of this machine" in only(found, "ports", "problem")["message"]


@pytest.mark.integration
@needs_root
def test_a_privileged_port(real_pool: RealPool) -> None:
    public(real_pool)
    real_pool.write("pool.toml", '[[server]]\nname = "web"\nbind = "127.0.0.1:81"\napp = "hello:app"\n')
    prepare = "ip link set lo up 2>&- || true; echo 1024 > /proc/sys/net/ipv4/ip_unprivileged_port_start"
    code, found = examined(real_pool, around=in_namespace("--net", prepare, f'{AS_OTHER_USER} "$@"'))
    assert code == 1
    assert "privileged" in only(found, "ports", "problem")["message"]


@pytest.mark.integration
@needs_root
def test_a_short_queue_and_ports_of_outgoing_connections(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", '[[server]]\nname = "web"\nbind = "127.0.0.1:40000"\napp = "hello:app"\n')
    net = "/proc/sys/net"
    prepare = f'echo 16 > {net}/core/somaxconn; echo "39000 41000" > {net}/ipv4/ip_local_port_range'
    _, found = examined(real_pool, around=in_namespace("--net", prepare))
    assert only(found, "backlog", "warning")["fix"] == "sysctl -w net.core.somaxconn=2048"
    assert only(found, "port range", "warning")["fix"].endswith("ip_local_reserved_ports=40000")
    prepare += f"; echo 39990-40000 > {net}/ipv4/ip_local_reserved_ports"
    _, found = examined(real_pool, around=in_namespace("--net", prepare))
    only(found, "port range", "ok")


@pytest.mark.heavy_variants
@pytest.mark.integration
@needs_root
@pytest.mark.parametrize("keys", ["", '[events]\npath = "disk/events.jsonl"\n'])
def test_a_disk_for_logs_without_room(real_pool: RealPool, keys: str) -> None:
    real_pool.write_hello("web", extra="" if keys else 'log = { path = "disk/logs/web.log" }')
    path = real_pool.directory / "pool.toml"
    path.write_text(f"{keys}{path.read_text()}")
    (real_pool.directory / "disk").mkdir()
    code, found = examined(real_pool)
    assert (code, "logs" in found) == (0, False), "it is the state directory's"
    prepare = f"mount -t tmpfs -o size=64k none {real_pool.directory}/disk"
    code, found = examined(real_pool, around=in_namespace("--mount", prepare))
    assert code == 1
    assert only(found, "logs", "problem")["message"].endswith("disk has 64 KiB left")


@pytest.mark.integration
def test_a_runtime_directory_that_others_may_enter(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    real_pool.ok("start")
    directory = next(path for path in real_pool.runtime.iterdir() if not path.is_symlink())
    directory.chmod(0o755)
    code, found = examined(real_pool)
    directory.chmod(0o700)
    assert code == 1
    assert only(found, "pool", "problem")["fix"] == f"chmod 700 {directory}"


@pytest.mark.integration
def test_leftovers_of_a_killed_pool_are_found(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", '[[server]]\nname = "queue"\ncommand = ["sleep", "600"]\n')
    real_pool.ok("start")
    info = real_pool.info()
    workers = real_pool.items()["queue"]["pids"]
    killed = info["keeper_pid"], info["supervisor_pid"]
    for pid in killed:
        freeze(pid)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, killed)))
    code, found = examined(real_pool)
    assert code == 1
    assert "poolctl start" in next(each["fix"] for each in found["leftovers"] if each["status"] == "problem")
    for pid in [*workers, *real_pool.processes()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not real_pool.processes(), what="nothing is left of the pool")
    code, found = examined(real_pool)
    assert code == 0, [each for group in found.values() for each in group if each["status"] != "ok"]
    assert {each["status"] for each in found["leftovers"]} == {"warning"}
    for each in found["leftovers"]:
        subprocess.run(each["fix"].split(), check=True)
    _, found = examined(real_pool)
    only(found, "leftovers", "ok")


@pytest.mark.integration
@needs_root
def test_proc_that_lists_no_processes_is_a_problem(real_pool: RealPool) -> None:
    code, found = examined(real_pool, around=in_namespace("--mount", "mount -t tmpfs none /proc"))
    assert code == 1
    assert only(found, "proc", "problem")["message"].startswith("/proc ")


@pytest.mark.integration
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its system calls have other numbers elsewhere")
def test_a_kernel_that_forbids(real_pool: RealPool) -> None:
    def in_sandbox(*calls: int) -> tuple[int, Found]:
        numbers = ",".join(map(str, calls))
        return examined(real_pool, around=f'exec {sys.executable} {sandbox.__file__} {numbers} "$@"')

    code, found = in_sandbox(*sandbox.NEW_CALLS)
    assert code == 0
    assert [each["message"].split()[0] for each in found["kernel"]] == ["pidfd_open", "pidfd_getfd"]
    fix = "allow it in the sandbox (--security-opt seccomp=…), or use a newer kernel"
    assert {(each["status"], each["fix"]) for each in found["kernel"]} == {("warning", fix)}
    code, found = in_sandbox(319)
    assert code == 1
    assert "memfd_create" in next(each["message"] for each in found["kernel"] if each["status"] == "problem")


MOUNTS = """
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:40 / /home/a\\040b rw - nfs4 server:/home rw,vers=4.2
23 22 0:41 / /home/a\\040b/local rw - tmpfs none rw
"""


class Stage:
    """A machine whose system files are those of a directory, and a pool without a supervisor."""

    def __init__(self, root: Path) -> None:
        self.root = root
        machine = Machine(root=str(root), uid=1000, open_files=(1024, 1024), max_processes=UNLIMITED)
        self.context: Any = SimpleNamespace(
            about=None, items=(), servers=[], addresses={}, served=set(), processes=10, pool=None, env={},
            config=None, machine=machine,
        )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        file = Path(f"{self.root}{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def write_to_group(self, files: dict[str, str]) -> None:
        """Write files of the control group above the process's own."""
        Path(f"{self.root}/sys/fs/cgroup/g/a").mkdir(parents=True)
        self.write("/proc/self/cgroup", "0::/g/a\n")
        for name, text in files.items():
            self.write(f"/sys/fs/cgroup/g/{name}", text)

    def change(self, **facts: Any) -> None:
        """Change the user or the limits of this process."""
        self.context.machine = replace(self.context.machine, **facts)

    def serve(self, **ports: int) -> None:
        self.context.addresses = {name: parse(f"127.0.0.1:{port}") for name, port in ports.items()}


@pytest.fixture
def machine(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def found(results: Iterable[CheckResult]) -> list[tuple[str, str]]:
    return [(each.status, each.message) for each in results]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a b/pool", "nfs4"),
        ("/home/a b", "nfs4"),
        ("/home/a b/local/x", ""),
        ("/home/a bc", ""),
        ("/", ""),
    ],
)
def test_the_innermost_mount_says_whether_a_path_is_on_the_network(
    machine: Stage, path: str, kind: str
) -> None:
    machine.write("/proc/self/mountinfo", MOUNTS)
    assert _check_machine.network_file_system(path, machine.context.machine) == kind


@pytest.mark.parametrize(
    ("reserved", "status", "message"),
    [
        (
            "",
            "warning",
            "outgoing connections use ports 32768-60999 and may occupy 32768,60999 when a server starts",
        ),
        ("32768,60000-60999", "ok", "no server's port is in the range of outgoing connections, 32768-60999"),
        (
            "32769-60998",
            "warning",
            "outgoing connections use ports 32768-60999 and may occupy 32768,60999 when a",
        ),
    ],
)
def test_port_of_outgoing_connections_has_to_be_reserved(
    machine: Stage, reserved: str, status: str, message: str
) -> None:
    machine.write("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
    machine.write("/proc/sys/net/ipv4/ip_local_reserved_ports", f"{reserved}\n")
    machine.serve(first=32768, last=60999, below=32767, above=61000)
    (one,) = _check_machine.ephemeral(machine.context)
    assert one.status == status
    assert one.message.startswith(message)


def test_range_of_ports_that_cannot_be_read_is_not_checked(machine: Stage) -> None:
    assert found(_check_machine.ephemeral(machine.context)) == []


@pytest.mark.parametrize(
    ("most", "status"), [(str(BACKLOG - 1), "warning"), (str(BACKLOG), "ok"), ("", "ok"), ("many", "ok")]
)
def test_queue_of_connections_is_as_long_as_the_kernel_allows(machine: Stage, most: str, status: str) -> None:
    machine.write("/proc/sys/net/core/somaxconn", most)
    ((is_found, message),) = found(_check_machine.backlog(machine.context))
    assert is_found == status
    assert str(BACKLOG) in message


@pytest.mark.parametrize(
    ("most", "uid", "running", "status"),
    [
        (1, 1000, False, "problem"), (10**7, 1000, False, "ok"), (1, 0, False, "ok"), (1, 1000, True, "ok"),
        (UNLIMITED, 1000, False, "ok"),
    ],
)  # fmt: skip
def test_user_has_to_be_allowed_the_processes_of_the_pool(
    machine: Stage, most: int, uid: int, running: bool, status: str
) -> None:
    machine.change(max_processes=most, uid=uid)
    machine.context.items = ["web"] if running else []
    ((is_found, message),) = found(_check_machine.processes(machine.context))
    assert is_found == status
    assert "about 16" in message


@pytest.mark.parametrize(
    ("most", "now", "status"),
    [
        ("26", "11", "problem"),
        ("26", "10", "ok"),
        ("max", "1000", "ok"),
        ("15", "", "problem"),
        ("16", "", "ok"),
    ],
)
def test_control_group_has_to_allow_the_processes_of_the_pool(
    machine: Stage, most: str, now: str, status: str
) -> None:
    machine.write_to_group({"pids.max": most, "pids.current": now})
    ((is_found, message),) = found(_check_machine.processes(machine.context))
    assert is_found == status
    assert (f"the control group may have {most} and has {now or 0}" in message) is (status == "problem")


@pytest.mark.parametrize(
    ("available_kib", "group", "running", "status", "message"),
    [
        (8 << 20, {}, False, "ok", "8192 MiB are available, the pool needs"),
        (1 << 10, {}, False, "problem", "1 MiB are available, the pool needs"),
        (1 << 10, {}, True, "warning", "1 MiB are available"),
        (0, {}, False, "ok", "0 MiB are available"),
        (
            8 << 20,
            {"memory.max": "4194304", "memory.current": "2097152"},
            False,
            "problem",
            "2 MiB are available to",
        ),
        (
            8 << 20,
            {"memory.limit_in_bytes": "4194304"},
            False,
            "problem",
            "4 MiB are available to this control",
        ),
        (8 << 20, {"memory.max": "max"}, False, "ok", "8192 MiB are available, "),
        (8 << 20, {"memory.max": str(16 << 30)}, False, "ok", "8192 MiB are available, "),
    ],
)
def test_memory_is_what_the_machine_and_the_control_group_have_left(
    machine: Stage, available_kib: int, group: dict[str, str], running: bool, status: str, message: str
) -> None:
    machine.write("/proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {available_kib} kB\n")
    machine.write_to_group(group)
    machine.context.items = ["web"] if running else []
    ((is_found, said),) = found(_check_machine.memory(machine.context))
    assert is_found == status
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("soft", "hard", "scale", "status", "message"),
    [
        (1024, 1_000_000, {"min": 1, "max": 1}, "ok", "the limit is 1000000, the pool needs"),
        (8, 1_000_000, {"min": 1, "max": 1}, "warning", "a worker may open only 8"),
        (1024, 20, {"min": 1, "max": 1}, "problem", "the limit is 20, the pool needs"),
        (1024, 1000, {"min": 1, "max": 1000}, "warning", "with all servers at their largest scale"),
        (1024, resource.RLIM_INFINITY, {"min": 1, "max": 1000}, "ok", "the limit is -1"),
    ],
)
def test_limit_of_open_files_is_that_of_the_keeper_and_of_each_worker(
    machine: Stage, soft: int, hard: int, scale: dict[str, int], status: str, message: str
) -> None:
    machine.change(open_files=(soft, hard))
    machine.context.servers = [ServerConfig(name="web", bind="127.0.0.1:8000", app="a:b", scale=scale)]
    ((is_found, said),) = found(_check_machine.open_files(machine.context))
    assert is_found == status
    assert message in said


@pytest.mark.parametrize(("uid", "wanted", "problems"), [(1000, 5001, 1), (1000, 5000, 0), (0, 5001, 0)])
def test_server_may_not_have_more_open_files_than_its_user(
    machine: Stage, uid: int, wanted: int, problems: int
) -> None:
    machine.change(open_files=(1024, 5000), uid=uid)
    limits = {"open_files": wanted}
    machine.context.servers = [ServerConfig(name="web", bind="127.0.0.1:8000", app="a:b", limits=limits)]
    _, *others = found(_check_machine.open_files(machine.context))
    message = f"web is configured for {wanted}, above the limit of 5000"
    assert others == [("problem", message)] * problems


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({}, "ok"), ({"a.conf": "KillUserProcesses=yes\n"}, "warning"),
        ({"a.conf": "KillUserProcesses=yes\n", "b.conf": " KillUserProcesses = no\n"}, "ok"),
        ({"a.conf": "#KillUserProcesses=yes\n"}, "ok"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lingers", [False, True])
def test_logout_ends_the_pool_where_logind_says_so(
    machine: Stage, files: dict[str, str], status: str, lingers: bool
) -> None:
    machine.change(uid=1)
    for name, text in files.items():
        machine.write(f"/etc/systemd/logind.conf.d/{name}", text)
    if lingers:
        machine.write(f"/var/lib/systemd/linger/{user_name(1)}", "")
    assert found(_check_machine.logout(machine.context)) == [("ok", "no logind that would stop the pool")]
    Path(f"{machine.root}/run/systemd/system").mkdir(parents=True)
    ((is_found, _),) = found(_check_machine.logout(machine.context))
    assert is_found == ("ok" if lingers else status)
    machine.change(uid=0)
    assert found(_check_machine.logout(machine.context)) == [("ok", "the pool keeps running")]


@pytest.mark.parametrize(
    ("blocks", "inodes", "flag", "status", "message"),
    [
        (10_000_000, 1_000_000, 0, "ok", "39062 MiB left"),
        (1, 1_000_000, 0, "problem", "4 KiB left"),
        (10_000_000, 1, 0, "problem", "room for 1 more files (inodes)"),
        (10_000_000, 1_000_000, os.ST_RDONLY, "problem", "is on a read-only file system"),
        (10_000, 1_000_000, 0, "warning", "39 MiB left"),
    ],
)
def test_room_is_that_of_the_file_system(
    blocks: int, inodes: int, flag: int, status: str, message: str
) -> None:
    system: Any = SimpleNamespace(
        f_bavail=blocks, f_frsize=4096, f_files=2_000_000, f_favail=inodes, f_flag=flag
    )
    ((is_found, said),) = found(_check_machine.free_space("logs", "/x", system))
    assert (is_found, message in said) == (status, True)
    system.f_files = 0  # as of file systems without a fixed number of inodes
    if inodes == 1:
        assert found(_check_machine.free_space("logs", "/x", system))[0][0] == "ok"


def test_control_groups_are_those_of_the_process_and_above(tmp_path: Path) -> None:
    for path in ("a/b", "pids/c"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "listing").write_text("0::/a/b\n5:pids,cpu:/c\n6:memory:/d")
    places = str(tmp_path), str(tmp_path / "listing")
    assert [*control_groups("pids", *places)] == [
        f"{tmp_path}/a/b", f"{tmp_path}/a", f"{tmp_path}", f"{tmp_path}/pids/c", f"{tmp_path}/pids",
    ]  # fmt: skip
    assert [*control_groups("memory", *places)][3:] == []


def test_kernel_of_this_machine_has_the_calls(machine: Stage) -> None:
    with no_descriptor_left():
        ((status, message),) = found(_check_machine.kernel_features(machine.context))
    assert (status, message) == ("ok", f"Linux {os.uname().release} has what the pool needs")


def test_limit_of_a_running_pool_is_that_of_its_keeper(machine: Stage) -> None:
    machine.change(open_files=(1024, 20))
    machine.context.servers = [ServerConfig(name="web", bind="127.0.0.1:8000", app="a:b")]
    command = ["sh", "-c", "ulimit -n 1023; echo; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"\n"
        machine.context.about = SimpleNamespace(keeper_pid=keeper.pid)
        ((status, said),) = found(_check_machine.open_files(machine.context))
        assert (status, said.partition(",")[0]) == ("ok", "the limit is 1023")
        keeper.kill()
    ((status, said),) = found(_check_machine.open_files(machine.context))
    assert (status, said.partition(",")[0]) == ("problem", "the limit is 20")


def test_threads_are_those_of_this_user() -> None:
    alone = _check_machine.threads_of_user()
    assert alone >= 1
    over = threading.Event()
    others = [threading.Thread(target=over.wait) for _ in range(100)]
    for thread in others:
        thread.start()
    try:
        assert _check_machine.threads_of_user() >= 100
    finally:
        over.set()
        for thread in others:
            thread.join()


def test_address_that_cannot_be_opened_is_a_problem(machine: Stage, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        machine.serve(web=port, served=port, free=claim_port())
        machine.context.served = {"served", "job"}
        job = ServerConfig(name="job", job=True, command=["true"])
        machine.context.servers = [job]
        machine.context.addresses |= {
            "sock": parse(f"unix:{tmp_path}/a.sock"), "nowhere": parse(f"unix:{tmp_path}/none/a.sock"),
        }  # fmt: skip
        results = list(_check_machine.ports(machine.context))
    assert [(each.status, each.message.partition(" by ")[0]) for each in results] == [
        ("problem", f"nowhere: {tmp_path}/none does not exist"),
        ("problem", f"web: port {port} is in use"),
        ("ok", "1 served, 1 free"),
    ]
    assert results[0].fix == f"mkdir -p {tmp_path}/none, owned by this user"


def test_file_at_the_address_of_a_server_is_a_socket_that_is_stale(machine: Stage, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("file", "stale", "taken", "none", "served")}
    Path(paths["file"]).touch()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(paths["stale"])
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(paths["taken"])
        taken.listen()
        Path(paths["served"]).touch()
        machine.context.addresses = {name: parse(f"unix:{path}") for name, path in paths.items()}
        machine.context.served = {"served"}
        results = list(_check_machine.leftover_sockets(machine.context))
    assert [(each.status, each.message, each.fix) for each in results] == [
        ("problem", f"file: {paths['file']} exists and is not a socket", f"move {paths['file']} away"),
        ("ok", f"stale: {paths['stale']} is stale and will be replaced", ""),
        ("problem", f"taken: another process listens on {paths['taken']}",
         f"fuser {paths['taken']} shows the process"),
    ]  # fmt: skip


@pytest.fixture
def directories(machine: Stage) -> Iterator[Path]:
    """The directories of a pool, with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="pc-") as directory:
        machine.context.env = {
            "POOLCTL_RUNTIME_DIR": f"{directory}/run", "POOLCTL_STATE_DIR": f"{directory}/state",
        }  # fmt: skip
        machine.context.pool = PoolRef([f"{directory}/pool.toml"], f"{directory}/run/key")
        Path(directory, "pool.toml").touch()
        yield Path(directory)


def test_directories_of_a_pool_have_room(machine: Stage, directories: Path) -> None:
    for pool in (machine.context.pool, None):
        machine.context.pool = pool
        ((_, said),) = found(_check_machine.runtime_directory_check(machine.context))
        assert said.startswith(str(directories))
        rooms = [said for _, said in found(_check_machine.state_directory_check(machine.context))]
        assert [said.startswith(str(directories)) for said in rooms] == [True] * (pool is not None)


def test_directories_on_the_network_are_reported(machine: Stage, directories: Path) -> None:
    machine.write("/proc/self/mountinfo", f"22 21 0:40 / {directories} rw - nfs server:/ rw")
    (runtime,) = _check_machine.runtime_directory_check(machine.context)
    assert (runtime.status, runtime.message, runtime.fix) == (
        "problem", f"{directories} is on a network file system (nfs), where Unix sockets do not work",
        "set POOLCTL_RUNTIME_DIR to a directory on this machine",
    )  # fmt: skip
    state, room = _check_machine.state_directory_check(machine.context)
    assert (state.status, state.message, state.fix) == (
        "warning", f"{directories} is on a network file system (nfs): no logs are written while it is unavailable",
        "set POOLCTL_STATE_DIR to a directory on this machine",
    )  # fmt: skip
    assert room.message.startswith(str(directories))


def test_directories_that_are_not_writable_are_problems(machine: Stage, directories: Path) -> None:
    user = 54321
    directories.chmod(0o755)
    log = {"path": str(directories / "web.log")}
    machine.context.servers = [ServerConfig(name="web", bind="127.0.0.1:8000", app="a:b", log=log)]
    (directories / "state").mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(directories / "state", user, user)
    found = run_as(user, lambda: list(_check_machine.state_directory_check(machine.context))[1:])
    assert [(each.status, each.message, each.fix) for each in found] == [
        ("problem", f"web: its log {directories}/web.log is not writable",
         "make this user its owner, or change log.path"),
    ]  # fmt: skip
    (directories / "state").rmdir()
    (state,) = run_as(user, lambda: list(_check_machine.state_directory_check(machine.context)))
    assert (state.status, state.message, state.fix) == (
        "problem", f"{directories} is not writable", "make this user its owner, or set POOLCTL_STATE_DIR",
    )  # fmt: skip
    (runtime,) = run_as(user, lambda: list(_check_machine.runtime_directory_check(machine.context)))
    assert (runtime.status, runtime.message, runtime.fix) == (
        "problem", f"no runtime directory: {directories} is not writable",
        "set POOLCTL_RUNTIME_DIR to a writable directory",
    )  # fmt: skip


def test_directories_that_others_can_change_are_problems(machine: Stage, directories: Path) -> None:
    directories.chmod(0o777)
    why = f"{directories} can be changed by others (mode 0777), who could replace {directories}"
    fix = f"chmod {'+t' if os.geteuid() == 0 else 'go-w'} {directories}"
    (runtime,) = _check_machine.runtime_directory_check(machine.context)
    assert (runtime.status, runtime.message, runtime.fix) == ("problem", f"{why}/run/key", fix)
    (state,) = _check_machine.state_directory_check(machine.context)
    assert (state.status, state.message, state.fix) == ("problem", f"{why}/state/key", fix)
    assert found(_check_machine.disks(machine.context)) == []


def test_entries_of_the_runtime_directory_that_belong_to_no_pool_are_leftovers(
    machine: Stage, directories: Path
) -> None:
    run = directories / "run"
    assert found(_check_machine.leftovers(machine.context)) == [("ok", "none")]
    for name in ("gone", "left", "empty"):
        (run / name).mkdir(parents=True)
    (run / "gone" / "control.sock").touch()
    (run / "left" / "control.sock").touch()
    (run / "@shop").symlink_to("gone")
    (run / "@lost").symlink_to("nowhere")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        note = ProcessNote(process.pid, process_start(process.pid) or 0, "web")
        ProcessNotes(f"{run}/left").close([note])
        results = list(_check_machine.leftovers(machine.context))
        process.kill()
    assert [(each.status, each.message, each.fix) for each in results] == [
        ("warning", f"{run}/@lost is a dangling link", f"rm {run}/@lost"),
        ("warning", f"{run}/gone: its supervisor is gone, its socket is left over",
         f"rm -r {run}/gone {run}/@shop"),
        ("problem", f"{run}/left: 1 process of a killed pool was left over: web",
         "poolctl start or poolctl stop ends them"),
    ]  # fmt: skip


def test_disks_of_logs_elsewhere_are_checked_once(machine: Stage, directories: Path) -> None:
    def said() -> list[str]:
        return [text.split()[0].rstrip(",") for _, text in found(_check_machine.disks(machine.context))]

    logs = [None, "/dev/shm/a.log", "/dev/shm/none/b.log", str(directories / "d.log")]
    machine.context.servers = [SimpleNamespace(log=SimpleNamespace(path=path)) for path in logs]
    machine.context.config = SimpleNamespace(tables=Tables())
    assert said() == ["/dev/shm"]
    machine.context.config = SimpleNamespace(tables=Tables(events=EventsTable(path="/dev/shm/e")))
    machine.context.servers = []
    assert said() == ["/dev/shm"]
    machine.context.config = None
    assert said() == []
