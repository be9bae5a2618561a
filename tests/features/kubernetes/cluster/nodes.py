"""Starts a real cluster with nodes on this machine, as root; `build` has made its programs.

Each node has namespaces of its own for network, processes and mounts, with containerd, kubelet and kube-proxy in them.
A switch connects the nodes, the control plane, and the operator's machine, which the tests run on. The namespaces have
no names: they are gone with the processes in them, and those with the process of the tests.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.deadline import wait_until
from tests.docs.pages import ROOT

from .api_server import CACHE, IS_BUILT, ApiServer, running, started
from .image import write_program_image, write_python_image

IMAGE, NEXT_IMAGE = "poolctl.test/shop:1", "poolctl.test/shop:2"  # the same under two names
GATEWAY = "node-1"  # the node through which the tests reach Services
# How long the node controller waits for a node's report before it calls the node lost.
GRACE_SECONDS = 16
_REPORT_SECONDS = 3
_NETWORK, _PODS, _SERVICES = "10.77.0", "10.244", "10.96.0.0/16"
_OPERATOR, _CONTROL, _NODES = (
    2,
    10,
    10,
)  # the last numbers of their addresses; the first node has the next one
_CONTROL_ADDRESS = f"{_NETWORK}.{_CONTROL}"
_PAUSE = "poolctl.test/pause:1"
_READY_SECONDS, _END_SECONDS = 180.0, 30.0
_HERE = Path(__file__).parent
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_DIES_WITH_TESTS = ["setpriv", "--pdeathsig", "KILL"]


def why_not() -> str:
    """Why nodes cannot be started here, or an empty string."""
    if os.geteuid() != 0:
        return "nodes need root"
    programs = ("kubelet", "kube-proxy", "kube-controller-manager", "kube-scheduler", "pause")
    if not IS_BUILT or not all((CACHE / "bin" / each).exists() for each in programs):
        return "make test-cluster builds what nodes run"
    missing = [
        each
        for each in ("ip", "nsenter", "unshare", "setpriv", "chroot", "dpkg", "kubectl")
        if not shutil.which(each)
    ]
    return f"nodes need {' and '.join(missing)}" if missing else ""


class Host:
    """A machine of the cluster: a network namespace that is connected to the switch."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.address = f"{_NETWORK}.{number}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def enter(self) -> list[str]:
        """The words that run a command in its network."""
        assert self.process is not None
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net"]

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) in its network."""
        subprocess.run([*self.enter, "ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


class Node(Host):
    """A node of the cluster; its pods have addresses of `pods`."""

    def __init__(self, position: int) -> None:
        super().__init__(_NODES + position)
        self.name = f"node-{position}"
        self.pods = f"{_PODS}.{position}.0/24"


class Cluster:
    """A running cluster, as a test changes it."""

    def __init__(self, directory: Path, count: int, cgroup: str) -> None:
        self.directory, self._cgroup = directory, cgroup
        self.nodes = {node.name: node for node in map(Node, range(1, count + 1))}
        self.control, self.operator, self._switch = Host(_CONTROL), Host(_OPERATOR), Host(0)
        self.api: ApiServer

    # Networks

    def open_networks(self, stack: ExitStack) -> None:
        """Make the networks of the switch, the control plane and the operator's machine."""
        for each in (self._switch, self.control, self.operator):
            each.process = _in_new_namespaces(["unshare", "--net", "sleep", "infinity"])
            stack.callback(_kill, each.process)
        self._switch.ip("link add br0 type bridge", "link set br0 up")
        for each in (self.control, self.operator):
            self._connect(each)
        # The first node forwards connections to Services, which no other machine does.
        self.operator.ip(f"route add {_SERVICES} via {self.nodes[GATEWAY].address}")

    def _connect(self, host: Host) -> None:
        assert self._switch.process is not None
        assert host.process is not None
        port = f"v{host.number}"
        link = ["link", "add", port, "netns", self._switch.process.pid, "type", "veth", "peer"]
        subprocess.run(["ip", *map(str, link), "name", "eth0", "netns", str(host.process.pid)], check=True)
        self._switch.ip(f"link set {port} master br0 up")
        others = (node for node in self.nodes.values() if node is not host)
        host.ip(
            f"addr add {host.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            *(f"route add {node.pods} via {node.address}" for node in others),
        )
        subprocess.run([*host.enter, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)

    def cut(self, host: Host) -> None:
        """Take the host's cable out."""
        self._switch.ip(f"link set v{host.number} down")

    def join(self, host: Host) -> None:
        """Put the host's cable back."""
        self._switch.ip(f"link set v{host.number} up")

    # Nodes

    def start(self, name: str) -> None:
        """Start a node; it is ready some seconds later."""
        node = self.nodes[name]
        place = self.directory / name
        place.mkdir(exist_ok=True)
        for file, content in _settings(node, place).items():
            (place / file).write_text(content)
        options = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words = [_HERE / "node", name, node.address, place, CACHE, self._cgroup]
        node.process = _in_new_namespaces(["unshare", *options, "bash", *words], stdin=subprocess.PIPE)
        self._connect(node)
        assert node.process.stdin is not None
        with node.process.stdin as network_is_there:
            network_is_there.write(b"\n")

    def kill(self, name: str) -> None:
        """End all processes of a node at once, as a power failure does."""
        process = self.nodes[name].process
        if process is not None:
            (init,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() or ("",)
            _kill(process)
            wait_until(lambda: not Path(f"/proc/{init or 'none'}").exists(), timeout_seconds=_END_SECONDS)
            self.nodes[name].process = None

    @contextmanager
    def cordoned(self, name: str) -> Iterator[None]:
        """New pods are placed on other nodes."""
        path, patch = f"/api/v1/nodes/{name}", "application/merge-patch+json"
        assert self.api.ask("PATCH", path, {"spec": {"unschedulable": True}}, patch)[0] == 200
        try:
            yield
        finally:
            self.api.ask("PATCH", path, {"spec": {"unschedulable": None}}, patch)

    def kill_all(self) -> None:
        """Kill every node, and remove the control groups of their containers."""
        for name in self.nodes:
            self.kill(name)

        def are_removed() -> bool:
            roots = [each / self._cgroup for each in _hierarchies()]
            for path, _, _ in itertools.chain(*(os.walk(root, topdown=False) for root in roots)):
                with suppress(OSError):  # a process in it is still ending
                    os.rmdir(path)
            return not any(root.exists() for root in roots)

        wait_until(are_removed, timeout_seconds=_END_SECONDS)

    def are_ready(self, but_for_taints: bool = False) -> bool:
        """Whether every node is ready; one with taints is not, because no pod is placed on it."""
        _, found = self.api.ask("GET", "/api/v1/nodes")
        ready = [
            each["metadata"]["name"]
            for each in found["items"]
            if {"type": "Ready", "status": "True"}.items()
            <= next((c for c in each["status"]["conditions"] if c["type"] == "Ready"), {}).items()
            and (but_for_taints or not each["spec"].get("taints"))
        ]
        return len(ready) == len(self.nodes)

    def wait_for_nodes(self, but_for_taints: bool = False) -> None:
        """Return when every node is ready."""
        logs = (self.directory / name / "kubelet.log" for name in self.nodes)
        wait_until(
            lambda: self.are_ready(but_for_taints),
            timeout_seconds=_READY_SECONDS,
            what=lambda: "\n".join(log.read_text()[-2000:] for log in logs if log.exists()),
        )

    # Objects

    def kubectl(self, *words: str, stdin: str = "", timeout_seconds: float = 300.0) -> str:
        """What a command of kubectl prints."""
        command = ["kubectl", "--cache-dir", self.directory / "kubectl", *words]
        done = subprocess.run(
            command,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands for this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.directory / "kubeconfig")}

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        """The pods of a namespace."""
        _, found = self.api.ask("GET", f"/api/v1/namespaces/{namespace}/pods")
        return list(found["items"])

    def service(self, namespace: str, name: str) -> str:
        """The address of a Service, HOST:PORT."""
        _, found = self.api.ask("GET", f"/api/v1/namespaces/{namespace}/services/{name}")
        return f"{found['spec']['clusterIP']}:{found['spec']['ports'][0]['port']}"


@contextmanager
def cluster(count: int, app: Mapping[str, str], requirements: Sequence[str] = ()) -> Iterator[Cluster]:
    """A cluster of `count` ready nodes, which have `IMAGE` with these files in /app, and packages of PyPI.

    In the block this thread, and what it starts, is on the operator's machine.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="poolctl-cluster-")))
        (directory / "images").mkdir()
        write_program_image(directory / "images" / "pause.tar", _PAUSE, CACHE / "bin" / "pause")
        names = (IMAGE, NEXT_IMAGE)
        write_python_image(directory / "images" / "shop.tar", names, CACHE / "image-debs", app, requirements)
        found = Cluster(directory, count, f"poolctl-nodes-{os.getpid()}")
        found.open_networks(stack)
        stack.enter_context(_on(found.operator))
        enter = [*_DIES_WITH_TESTS, *found.control.enter]
        options = ["--kubelet-preferred-address-types", "InternalIP"]
        api = stack.enter_context(running(directory, address=_CONTROL_ADDRESS, enter=enter, options=options))
        found.api = api
        (directory / "kubeconfig").write_text(api.kubeconfig())
        with ExitStack() as nodes:
            nodes.callback(found.kill_all)
            for name in found.nodes:
                found.start(name)
            # The controllers of 1.20 queue a node that is not ready yet for a taint, and may never take it out again:
            # no pod of another lost node is evicted then, because they look at the first of the queue each time.
            found.wait_for_nodes(but_for_taints=True)
            for name, command in _control_plane(directory, api).items():
                stack.enter_context(started([*enter, *command], directory / f"{name}.log", ROOT))
            stack.push(nodes.pop_all())
        found.wait_for_nodes()
        yield found


def _control_plane(directory: Path, api: ApiServer) -> dict[str, list[object]]:
    """The commands of the control plane beside etcd and the API server."""
    kubeconfig = ["--kubeconfig", directory / "kubeconfig", "--leader-elect=false"]
    return {
        "controllers": [
            CACHE / "bin/kube-controller-manager", *kubeconfig, "--root-ca-file", api.trusted,
            "--service-account-private-key-file", directory / "accounts.key", "--allocate-node-cidrs=false",
            "--node-monitor-grace-period", f"{GRACE_SECONDS}s", "--node-monitor-period", "1s",
        ],
        "scheduler": [CACHE / "bin/kube-scheduler", *kubeconfig],
        "dns": [sys.executable, "-m", f"{__package__}.dns", _CONTROL_ADDRESS, directory, api.port],
    }  # fmt: skip


def _settings(node: Node, place: Path) -> dict[str, str]:
    """The configuration files of a node."""
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{"subnet": node.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "failSwapOn": False,
        "resolvConf": "",
        "clusterDNS": [_CONTROL_ADDRESS],
        "clusterDomain": "cluster.local",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": f"{_REPORT_SECONDS}s",
        # The defaults since 1.27. Those of 1.20, 5 requests a second, delay the start of several pods by seconds.
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "eventRecordQPS": 50,
        "eventBurst": 100,
    }
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(place.parent / "kubeconfig")},
        "clusterCIDR": f"{_PODS}.0.0/16",
        "mode": "iptables",
        # Settings of the machine, which stay as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "10s"},
    }
    containerd = f"""\
version = 2
root = "{place}/containerd"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{_PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CACHE}/root/usr/lib/cni"
conf_dir = "{place}/networks"
"""
    (place / "networks").mkdir(exist_ok=True)
    return {
        "networks/10-bridge.conflist": json.dumps(network),
        "kubelet.json": json.dumps(kubelet),
        "proxy.json": json.dumps(proxy),
        "containerd.toml": containerd,
    }


def _hierarchies() -> list[Path]:
    """Where the hierarchies of control groups are mounted."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(place) for _, place, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def _in_new_namespaces(command: Sequence[object], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start an `unshare` command; returns when it has a network of its own."""
    process = subprocess.Popen([*_DIES_WITH_TESTS, *map(str, command)], stdin=stdin)
    own, their = Path("/proc/self/ns/net"), Path(f"/proc/{process.pid}/ns/net")
    wait_until(lambda: process.poll() is not None or own.readlink() != their.readlink())
    assert process.poll() is None, f"{command[0]} has ended"
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(_END_SECONDS)


@contextmanager
def _on(host: Host) -> Iterator[None]:
    """In the block this thread, and what it starts, has the network of the host."""
    assert host.process is not None
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"/proc/{host.process.pid}/ns/net") as theirs:

        def enter(file: Any) -> None:
            if libc.setns(file.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")

        enter(theirs)
        try:
            yield
        finally:
            enter(own)
