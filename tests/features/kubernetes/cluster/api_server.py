"""Starts etcd and kube-apiserver, which `build` has made, without root and on free ports of loopback."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.ports import claim_port

CACHE = Path(
    os.environ.get("K8S_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poolctl-k8s"
)
ETCD, API_SERVER = CACHE / "root/usr/bin/etcd", CACHE / "bin/kube-apiserver"
IS_BUILT = ETCD.exists() and API_SERVER.exists()
_START_SECONDS = 120.0
_APPLY = "application/apply-patch+yaml"
_PLURALS = {
    "ConfigMap": "configmaps", "Secret": "secrets", "Service": "services", "Deployment": "deployments", "Job": "jobs",
    "Ingress": "ingresses", "PodDisruptionBudget": "poddisruptionbudgets",
}  # fmt: skip
# Kubernetes has them since 1.25, 1.26 and 1.26.
_NEWER_KEYS = {"matchLabelKeys", "podFailurePolicy", "unhealthyPodEvictionPolicy"}
Object = dict[str, Any]


def in_older_form(wanted: Object) -> Object:
    """The object as Kubernetes 1.20 has it."""
    changed: Object = json.loads(json.dumps(wanted), object_hook=_older)
    return changed


def _older(table: Object) -> Object:
    """Replace a budget of policy/v1 (1.21) and a `sleep` of preStop (1.30), and take newer keys out."""
    table = {key: value for key, value in table.items() if key not in _NEWER_KEYS}
    if table.get("apiVersion") == "policy/v1":
        return table | {"apiVersion": "policy/v1beta1"}
    if table.keys() == {"sleep"}:
        return {"exec": {"command": ["sleep", str(table["sleep"]["seconds"])]}}
    return table


class ApiServer:
    """A running API server, where requests of tests are an administrator's."""

    def __init__(self, port: int, trusted: Path, *, address: str = "127.0.0.1") -> None:
        self.address, self.port, self.trusted = address, port, trusted
        self.url = f"https://{address}:{port}"
        self._tls = ssl.create_default_context(cafile=str(trusted))

    def ask(
        self, method: str, path: str, body: object = None, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """Status and body of the answer."""
        connection = http.client.HTTPSConnection(self.address, self.port, timeout=30, context=self._tls)
        try:
            text = None if body is None else json.dumps(body)
            headers = {"Authorization": "Bearer admin", "Content-Type": kind}
            connection.request(method, path, text, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        return response.status, json.loads(content) if content.startswith(b"{") else content.decode()

    def make(self, path: str, body: Object) -> None:
        """Create an object."""
        status, answer = self.ask("POST", path, body)
        assert status == 201, answer

    def apply(self, namespace: str, wanted: Object) -> Object:
        """Apply an object as `kubectl apply --server-side` does, in the form that Kubernetes 1.20 has of it."""
        wanted = in_older_form(wanted)
        version, plural = wanted["apiVersion"], _PLURALS[wanted["kind"]]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        path = f"{base}/namespaces/{namespace}/{plural}/{wanted['metadata']['name']}"
        status, answer = self.ask("PATCH", f"{path}?fieldManager=kubectl", wanted, _APPLY)
        assert status in (200, 201), answer
        assert isinstance(answer, dict)
        return answer

    def kubeconfig(self) -> str:
        """An administrator's kubeconfig."""
        server = {"server": self.url, "certificate-authority": str(self.trusted)}
        config = {
            "clusters": [{"name": "real", "cluster": server}],
            "users": [{"name": "admin", "user": {"token": "admin"}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "admin"}}],
            "current-context": "real",
        }
        return json.dumps(config)


@contextmanager
def running(
    directory: Path,
    *,
    address: str = "127.0.0.1",
    enter: Sequence[object] = (),
    options: Sequence[object] = (),
) -> Iterator[ApiServer]:
    """An API server that is ready, with more `options`; `enter` are the words of a command that runs a command."""
    etcd, peers, port = claim_port(), claim_port(), claim_port()
    cert, key = certificate(directory, address=address)
    accounts = directory / "accounts.key"
    accounts.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    tokens = directory / "tokens.csv"
    tokens.write_text('admin,admin,admin,"system:masters"\n')
    etcd_url, peer_url = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peers}"
    commands = {
        "etcd": [
            ETCD, "--data-dir", directory / "etcd", "--log-level", "warn", "--listen-client-urls", etcd_url,
            "--advertise-client-urls", etcd_url, "--listen-peer-urls", peer_url,
            "--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"default={peer_url}",
        ],
        "apiserver": [
            API_SERVER, "--etcd-servers", etcd_url, "--bind-address", address, "--secure-port", port,
            "--advertise-address", address, "--endpoint-reconciler-type", "none", "--cert-dir", directory,
            "--tls-cert-file", cert, "--tls-private-key-file", key, "--token-auth-file", tokens,
            "--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.96.0.0/16",
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-signing-key-file", accounts, "--service-account-key-file", accounts, *options,
        ],
    }  # fmt: skip
    with ExitStack() as stack:
        server = ApiServer(port, cert, address=address)
        for name, command in commands.items():
            log = directory / f"{name}.log"
            stack.enter_context(started([*enter, *command], log, directory))

        def is_ready() -> bool:
            try:
                return (
                    server.ask("GET", "/readyz")[0] == 200
                    and server.ask("GET", "/api/v1/namespaces/default")[0] == 200
                )
            except OSError:
                return False

        wait_until(is_ready, timeout_seconds=_START_SECONDS, what=(directory / "apiserver.log").read_text)
        yield server


@contextmanager
def started(command: Sequence[object], log: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended at the end. Fails if it had ended by itself, with the end of its log."""
    with log.open("wb") as file:
        process = subprocess.Popen([str(word) for word in command], cwd=directory, stdout=file, stderr=file)
    try:
        yield process
    finally:
        status = process.poll()
        process.terminate()
        process.wait(30)
    assert status is None, f"it had ended with {status}: {log.read_text()[-4000:]}"
