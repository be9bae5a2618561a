"""A small cluster for tests: API server, scheduler, controllers, and kubelets whose pods are real processes.

`python -m tests.features.kubernetes.fake_cluster DIRECTORY [--nodes N] [--role ROLE.yaml]` writes DIRECTORY/kubeconfig
when it serves. An image is a directory DIRECTORY/images/NAME; a pod has an address of its own, 127.X.Y.NUMBER, where
X and Y are the two bytes of the API server's port: clusters at the same time do not meet.

It knows what poolctl uses: lists and watches with versions, server-side apply with owners of fields and conflicts,
merge patches, deletion with what belongs to an object, logs, commands in pods (v4.channel.k8s.io over a WebSocket; a
command outlives its connection, whose end it may notice by its standard input), and with --role only what that Role
allows. Where a real
cluster contradicts it, it is wrong. POST /fake/node/NAME/kill ends a node with its processes, /fake/service/NAME opens
an address at which connections reach the ready pods of a Service.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import copy
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

Object = dict[str, Any]
KINDS = {
    "configmaps": ("v1", "ConfigMap"),
    "cronjobs": ("batch/v1", "CronJob"),
    "deployments": ("apps/v1", "Deployment"),
    "events": ("v1", "Event"),
    "horizontalpodautoscalers": ("autoscaling/v2", "HorizontalPodAutoscaler"),
    "httproutes": ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    "ingresses": ("networking.k8s.io/v1", "Ingress"),
    "jobs": ("batch/v1", "Job"),
    "nodes": ("v1", "Node"),
    "pods": ("v1", "Pod"),
    "replicasets": ("apps/v1", "ReplicaSet"),
    "secrets": ("v1", "Secret"),
    "services": ("v1", "Service"),
}
WITHOUT_GATEWAY_API = "without-gateway-api"  # a file with this name in the cluster's directory
IMMUTABLE = {"configmaps": "data", "secrets": "data", "jobs": "spec"}
NODE_GRACE_SECONDS = 1.0
# How long nodes go on sending connections to a pod that is not ready any more, or leaves.
ENDPOINTS_SECONDS = 0.5
PROBES_FASTER = 10  # probes are asked more often than they say, so that tests wait less
TOKEN = "of-the-operator"  # a secret of nobody
Path_ = tuple[str, ...]


class Refused(Exception):
    """An answer of the API server with an error."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class Missing(Exception):
    """The API server has no such group, version or kind: its answer is no object."""


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """The fields of an object; a list is one field."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, value


def at(found: Object, path: Path_) -> Any:
    for name in path:
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def put_at(found: Object, path: Path_, value: Any) -> None:
    for name in path[:-1]:
        found = found.setdefault(name, {})
    found[path[-1]] = copy.deepcopy(value)


def remove_at(found: Object, path: Path_) -> None:
    for name in path[:-1]:
        found = found.get(name, {})
    found.pop(path[-1], None)


class Store:
    """The objects, the owners of their fields, and every change since the beginning."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.owners: dict[tuple[str, str], dict[tuple[str, str], set[Path_]]] = {}
        self.history: list[tuple[int, str, str, Object]] = []  # version, plural, change, object
        self._versions = itertools.count(1)
        self.version = 0
        self.changed = asyncio.Condition()

    def of(self, plural: str) -> list[Object]:
        return [found for (kind, _), found in self.objects.items() if kind == plural]

    def find(self, plural: str, name: str) -> Object:
        try:
            return self.objects[plural, name]
        except KeyError:
            raise Refused(404, "NotFound", f'{plural} "{name}" not found') from None

    def note(self, plural: str, change: str, found: Object) -> None:
        self.version = next(self._versions)
        found["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, plural, change, copy.deepcopy(found)))
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def add(self, plural: str, found: Object) -> Object:
        api, kind = KINDS[plural]
        metadata = found.setdefault("metadata", {})
        found |= {"apiVersion": api, "kind": kind}
        metadata |= {
            "namespace": metadata.get("namespace", "default"),
            "uid": os.urandom(8).hex(),
            "creationTimestamp": now(),
            "generation": 1,
        }
        found.setdefault("status", {})
        self.objects[plural, metadata["name"]] = found
        self.note(plural, "ADDED", found)
        return found

    def update(self, plural: str, found: Object) -> None:
        if (plural, found["metadata"]["name"]) in self.objects:
            self.note(plural, "MODIFIED", found)

    def remove(self, plural: str, name: str) -> None:
        found = self.objects.pop((plural, name), None)
        self.owners.pop((plural, name), None)
        if found is not None:
            self.note(plural, "DELETED", found)

    def apply(self, plural: str, name: str, wanted: Object, manager: str, *, force: bool) -> Object:
        """Server-side apply."""
        check(plural, wanted)
        new = {path: value for path, value in leaves(wanted) if path[:1] not in (("apiVersion",), ("kind",))}
        new = {path: value for path, value in new.items() if path != ("metadata", "name")}
        found = self.objects.get((plural, name))
        owners = self.owners.setdefault((plural, name), {})
        me = (manager, "Apply")
        if found is None:
            owners[me] = set(new)
            return self.add(plural, copy.deepcopy(wanted))
        conflicts = [
            (owner, path)
            for owner, paths in owners.items()
            if owner != me
            for path in sorted(paths & new.keys())
            if at(found, path) != new[path]
        ]
        if conflicts and not force:
            api, _ = KINDS[plural]
            said = "; ".join(
                f'conflict with "{owner[0]}" using {api}: .{".".join(path)}' for owner, path in conflicts
            )
            raise Refused(409, "Conflict", f"Apply failed with {len(conflicts)} conflict: {said}")
        if (field := IMMUTABLE.get(plural)) and found.get(field) != {
            **found.get(field, {}),
            **wanted.get(field, {}),
        }:
            raise Refused(422, "Invalid", f"{plural} {name!r} is invalid: {field}: field is immutable")
        for owner, path in conflicts:
            owners[owner].discard(path)
        changed = copy.deepcopy(found)
        for path in owners.get(me, set()) - new.keys():
            if not any(path in paths for owner, paths in owners.items() if owner != me):
                remove_at(changed, path)
        for path, value in new.items():
            put_at(changed, path, value)
        owners[me] = set(new)
        return self.replace(plural, found, changed)

    def merge(self, plural: str, name: str, changes: Object, manager: str) -> Object:
        """A merge patch: its fields belong to the manager that has sent it."""
        found = self.find(plural, name)
        changed = copy.deepcopy(found)
        owners = self.owners.setdefault((plural, name), {})
        for path, value in leaves(changes):
            if at(found, path) == value:
                continue
            for paths in owners.values():
                paths.discard(path)
            if value is None:
                remove_at(changed, path)
            else:
                put_at(changed, path, value)
                owners.setdefault((manager, "Update"), set()).add(path)
        return self.replace(plural, found, changed)

    def replace(self, plural: str, found: Object, changed: Object) -> Object:
        if changed == found:
            return found
        if changed.get("spec") != found.get("spec"):
            changed["metadata"]["generation"] = found["metadata"]["generation"] + 1
        found.clear()
        found.update(changed)
        self.update(plural, found)
        return found


def check(plural: str, wanted: Object) -> None:
    """A few rules that a real API server has refused objects by."""
    ports: list[Object] = []
    if plural == "services":
        ports = wanted["spec"].get("ports", [])
    if plural == "deployments":
        template, selector = wanted["spec"]["template"], wanted["spec"]["selector"]["matchLabels"]
        if not selector.items() <= template["metadata"]["labels"].items():
            raise Refused(422, "Invalid", "`selector` does not match template `labels`")
        ports = [port for each in template["spec"]["containers"] for port in each.get("ports", [])]
    if any("protocol" not in port for port in ports):
        raise Refused(500, "InternalError", 'an element of ports omits key field "protocol"')


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def matches(found: Object, selector: str) -> bool:
    labels = found["metadata"].get("labels") or {}
    wanted = (each.partition("=") for each in selector.split(",") if each)
    return all(labels.get(name) == value.lstrip("=") for name, _, value in wanted)


class Api:
    """The API server. `rules` are those of a Role, or None: all is allowed."""

    def __init__(self, store: Store, cluster: Cluster, rules: list[Object] | None) -> None:
        self.store, self.cluster, self.rules = store, cluster, rules
        self.requests: list[str] = []
        self.is_away = False
        self.body: bytes | None = None  # what to answer instead of anything valid
        self.status = 200

    def routes(self) -> list[Route | WebSocketRoute]:
        found: list[Route | WebSocketRoute] = []
        for base in ("/api/v1", "/apis/{group}/{version}"):
            place = f"{base}/namespaces/{{namespace}}/{{plural}}"
            methods = ["GET", "POST", "PATCH", "DELETE"]
            found += [
                Route(place, self.collection, methods=["GET"]),
                Route(f"{place}/{{name}}", self.single, methods=methods),
                Route(f"{place}/{{name}}/{{part}}", self.single, methods=methods),
            ]
        found.append(WebSocketRoute("/api/v1/namespaces/{namespace}/{plural}/{name}/{part}", self.exec))
        return [*found, Route("/fake/{what:path}", self.fake, methods=["GET", "POST"])]

    def allow(self, request: HTTPConnection, verb: str) -> None:
        plural, part = request.path_params["plural"], request.path_params.get("part")
        what = f"{plural}/{part}" if part else plural
        self.requests.append(f"{verb} {what}")
        is_missing = plural == "httproutes" and (self.cluster.directory / WITHOUT_GATEWAY_API).exists()
        if plural not in KINDS or is_missing:
            raise Missing
        if self.rules is None:
            return
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        group = request.path_params.get("group", "")
        if not any(
            group in rule["apiGroups"] and what in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        ):
            user = 'User "operator" cannot'
            raise Refused(
                403,
                "Forbidden",
                f'{plural} is forbidden: {user} {verb} resource "{what}" in API group "{group}"',
            )

    async def collection(self, request: Request) -> Response:
        watches = request.query_params.get("watch") == "true"
        self.allow(request, "watch" if watches else "list")
        plural, selector = request.path_params["plural"], request.query_params.get("labelSelector", "")
        if watches:
            after = int(request.query_params.get("resourceVersion") or self.store.version)
            return StreamingResponse(self.watched(plural, selector, after), media_type="application/json")
        items = [each for each in self.store.of(plural) if matches(each, selector)]
        api, kind = KINDS[plural]
        version = {"resourceVersion": str(self.store.version)}
        return JSONResponse({"apiVersion": api, "kind": f"{kind}List", "metadata": version, "items": items})

    async def watched(self, plural: str, selector: str, after: int) -> AsyncIterator[str]:
        while True:
            for version, of, change, found in self.store.history[:]:
                if version > after and of == plural and matches(found, selector):
                    yield json.dumps({"type": change, "object": found}) + "\n"
            after = max(after, self.store.version)
            async with self.store.changed:
                await self.store.changed.wait_for(lambda: self.store.version > after)  # noqa: B023

    async def single(self, request: Request) -> Response:
        plural, name, part = (request.path_params.get(key) for key in ("plural", "name", "part"))
        assert plural is not None
        assert name is not None
        self.allow(
            request, {"GET": "get", "PATCH": "patch", "DELETE": "delete", "POST": "create"}[request.method]
        )
        if part == "log":
            return await self.log(request, name)
        if request.method == "GET":
            return JSONResponse(self.store.find(plural, name))
        if request.method == "DELETE":
            self.store.find(plural, name)
            self.cluster.delete(plural, name)
            return JSONResponse({"kind": "Status", "status": "Success"})
        body, manager = json.loads(await request.body()), request.query_params.get("fieldManager", "")
        if request.headers["content-type"] == "application/apply-patch+yaml":
            force = request.query_params.get("force") == "true"
            return JSONResponse(self.store.apply(plural, name, body, manager, force=force))
        return JSONResponse(self.store.merge(plural, name, body, manager))

    async def log(self, request: Request, name: str) -> Response:
        pod = self.store.find("pods", name)
        path = self.cluster.directory / "pods" / name / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        if "tailLines" in request.query_params:
            lines = lines[-int(request.query_params["tailLines"]) :]
        if request.query_params.get("follow") != "true":
            return PlainTextResponse("".join(f"{now()} {line}\n" for line in lines))

        async def followed() -> AsyncIterator[str]:
            shown = len(path.read_text().splitlines()) - len(lines) if path.exists() else 0
            while True:
                found = path.read_text().splitlines() if path.exists() else []
                for line in found[shown:]:
                    yield f"{now()} {line}\n"
                shown = len(found)
                if ("pods", name) not in self.store.objects or pod["status"].get("phase") in (
                    "Succeeded",
                    "Failed",
                ):
                    return
                await asyncio.sleep(0.05)

        return StreamingResponse(followed(), media_type="text/plain")

    async def exec(self, socket: WebSocket) -> None:
        """Run a command in a pod's container. Newer API servers want both verbs."""
        try:
            for verb in ("get", "create"):
                self.allow(socket, verb)
            name = socket.path_params["name"]
            pod = self.store.find("pods", name)
            if name not in self.cluster.containers or pod["status"].get("phase") != "Running":
                message = f"cannot exec into a container in a completed pod; current phase is {pod['status']}"
                raise Refused(400, "BadRequest", message)
        except Refused as error:
            await socket.send_denial_response(as_status(error))
            return
        await socket.accept(subprotocol="v4.channel.k8s.io")
        await socket.send_bytes(b"\1")  # the streams are there
        command, environment, image = self.cluster.containers[name]
        words = [command(word) for word in socket.query_params.getlist("command")]
        try:
            process = await asyncio.create_subprocess_exec(
                *([sys.executable, "-m"] if words[0] == "poolctl" else []),
                *words,
                env=environment,
                cwd=image,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            message = f"error executing command in container: {error}"
            status: Object = {"status": "Failure", "reason": "InternalError", "code": 500, "message": message}
            await socket.send_bytes(b"\3" + json.dumps(status).encode())
            return
        assert process.stdin is not None

        async def copied_from(channel: bytes, stream: asyncio.StreamReader | None) -> None:
            assert stream is not None
            while data := await stream.read(32768):
                await socket.send_bytes(channel + data)

        async def until_closed() -> None:
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass

        loop = asyncio.get_running_loop()
        output = [(b"\1", process.stdout), (b"\2", process.stderr)]
        ending = loop.create_task(wait_for_all(*(copied_from(*each) for each in output), process.wait()))
        closed = loop.create_task(until_closed())
        await asyncio.wait({ending, closed}, return_when=asyncio.FIRST_COMPLETED)
        # A client that leaves ends the reading, or the writing if that is in progress.
        if not ending.done() or isinstance(ending.exception(), WebSocketDisconnect):
            ending.cancel()
            process.stdin.close()
            await asyncio.wait({ending})
            self.cluster.reap(process)
            return
        closed.cancel()
        code = process.returncode or 0
        status = {"status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code if code > 0 else 128 - code)}]
            status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
        await socket.send_bytes(b"\3" + json.dumps(status).encode())

    async def fake(self, request: Request) -> Response:
        """What a test changes about the cluster, and asks of it."""
        match request.path_params["what"].split("/"):
            case ["node", name, "kill"]:
                await self.cluster.kill(name)
            case ["service", name]:
                return JSONResponse(await self.cluster.open_service(self.store.find("services", name)))
            case ["due", name]:
                self.cluster.run_cron_job(self.store.find("cronjobs", name))
            case ["requests"]:
                found, self.requests = self.requests, []
                return JSONResponse(found)
            case ["answer", status]:
                self.status, self.body = int(status), await request.body() or None
            case ["rules"]:
                self.rules = await request.json()
            case ["quota", number]:
                self.cluster.most_pods = int(number)
                self.cluster.wake.set()
            case ["merge", plural, name, manager]:
                self.store.merge(plural, name, await request.json(), manager)
            case ["add", plural]:
                self.store.add(plural, await request.json())
            case ["objects", plural]:
                return JSONResponse(self.store.of(plural))
            case _:
                return PlainTextResponse("what?", status_code=404)
        return PlainTextResponse("ok")


class Cluster:
    """Scheduler, controllers and kubelets: one loop that follows the store."""

    def __init__(self, store: Store, directory: Path, nodes: int, network: str) -> None:
        self.store, self.directory, self.network = store, directory, network
        self.most_pods: int | None = None
        self.wake = asyncio.Event()
        self._numbers = itertools.count(1)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._killed: dict[str, float] = {}
        # By pod: how its paths are called on this machine, its environment, and its image.
        self.containers: dict[str, tuple[Callable[[str], str], dict[str, str], Path]] = {}
        self._left: list[asyncio.subprocess.Process] = []
        self._runtime = tempfile.TemporaryDirectory(prefix="pc-")  # the paths of sockets must be short
        for number in range(1, nodes + 1):
            store.add("nodes", {"metadata": {"name": f"node-{number}"}})

    async def run(self) -> None:
        """Follow changes until cancelled."""
        while True:
            self.schedule()
            for each in self.store.of("deployments"):
                self.reconcile(each)
            for each in self.store.of("jobs"):
                self.run_job(each)
            self.judge_nodes()
            version = self.store.version
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25), self.store.changed:
                    await self.store.changed.wait_for(lambda: self.store.version != version)  # noqa: B023

    def active(self, labels: Object) -> list[Object]:
        """The pods of a workload that are not about to end."""
        return [
            each
            for each in self.store.of("pods")
            if labels.items() <= each["metadata"]["labels"].items()
            and "deletionTimestamp" not in each["metadata"]
            and each["status"].get("phase") not in ("Succeeded", "Failed")
        ]

    def replicas(self, deployment: Object) -> list[Object]:
        """The active pods of a Deployment; those of a Job may have the same labels."""
        found = self.active(deployment["spec"]["selector"]["matchLabels"])
        return [each for each in found if "pod-template-hash" in each["metadata"]["labels"]]

    def reconcile(self, deployment: Object) -> None:
        """Bring pods to a Deployment's template and number, one more at a time."""
        spec, selector = deployment["spec"], deployment["spec"]["selector"]["matchLabels"]
        digest = hashlib.blake2b(
            json.dumps(spec["template"], sort_keys=True).encode(), digest_size=4
        ).hexdigest()
        wanted = spec.get("replicas", 1)
        self.replica_set(deployment, digest)
        pods = self.replicas(deployment)
        new = [each for each in pods if each["metadata"]["labels"]["pod-template-hash"] == digest]
        old = [each for each in pods if each not in new]
        ready = [each for each in pods if is_ready(each)]
        recreates = spec.get("strategy", {}).get("type") == "Recreate"
        refused = False
        if recreates and old:
            for each in old:
                self.delete("pods", each["metadata"]["name"])
        elif not (recreates and self.leaving(selector)):
            while len(new) < wanted and len(pods) < wanted + 1 - recreates and not refused:
                refused = self.most_pods is not None and len(self.store.of("pods")) >= self.most_pods
                if not refused:
                    made = self.make_pod(deployment, spec["template"], {"pod-template-hash": digest})
                    new.append(made)
                    pods.append(made)
            for each in sorted(new, key=is_ready)[: max(0, len(new) - wanted)]:
                self.delete("pods", each["metadata"]["name"])
            spare = len(ready) - wanted
            for each in sorted(old, key=is_ready):
                if not is_ready(each) or spare > 0:
                    spare -= is_ready(each)
                    self.delete("pods", each["metadata"]["name"])
        condition = {
            "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
            "message": f'pods "{deployment["metadata"]["name"]}" is forbidden: exceeded quota: pods',
        }  # fmt: skip
        pods = self.replicas(deployment)
        available = sum(map(is_ready, pods))
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": sum(
                each["metadata"]["labels"]["pod-template-hash"] == digest for each in pods
            ),
            "availableReplicas": available,
            "readyReplicas": available,
            "conditions": [condition] if refused else [],
        }
        if deployment["status"] != status:
            deployment["status"] = status
            self.store.update("deployments", deployment)

    def replica_set(self, deployment: Object, digest: str) -> None:
        name = f"{deployment['metadata']['name']}-{digest}"
        if ("replicasets", name) not in self.store.objects:
            spec = {"template": copy.deepcopy(deployment["spec"]["template"])}
            metadata = {"name": name, "labels": dict(deployment["metadata"]["labels"])}
            self.store.add(
                "replicasets", {"metadata": metadata, "spec": spec, "owner": deployment["metadata"]["name"]}
            )

    def leaving(self, labels: Object) -> bool:
        return any(
            labels.items() <= each["metadata"]["labels"].items() and "deletionTimestamp" in each["metadata"]
            for each in self.store.of("pods")
        )

    def run_cron_job(self, cron_job: Object) -> None:
        """The time of a CronJob's schedule has come."""
        name, spec = cron_job["metadata"]["name"], cron_job["spec"]
        runs = [each for each in self.store.of("jobs") if owned_by(each, cron_job)]
        active = [each for each in runs if "conditions" not in each["status"]]
        if spec["suspend"] or (active and spec["concurrencyPolicy"] == "Forbid"):
            return
        run = copy.deepcopy(spec["jobTemplate"])
        owner = {"kind": "CronJob", "name": name, "uid": cron_job["metadata"]["uid"], "controller": True}
        run["metadata"] |= {"name": f"{name}-{next(self._numbers)}", "ownerReferences": [owner]}
        self.store.add("jobs", run)

    def run_job(self, job: Object) -> None:
        name = job["metadata"]["name"]
        pods = [each for each in self.store.of("pods") if each["metadata"]["labels"].get("job-name") == name]
        if not pods:
            self.make_pod(job, job["spec"]["template"], {"job-name": name})
            return
        phase = pods[0]["status"].get("phase")
        began = job["status"].get("startTime") or now()
        status: Object = {"active": 1, "startTime": began}
        if phase == "Succeeded":
            complete = {"type": "Complete", "status": "True", "lastTransitionTime": now()}
            status = {"succeeded": 1, "conditions": [complete], "completionTime": now(), "startTime": began}
        if phase == "Failed":
            message = "Job has reached the specified backoff limit"
            failed = {"type": "Failed", "status": "True", "message": message, "lastTransitionTime": now()}
            status = {"failed": 1, "conditions": [failed], "startTime": began}
        if job["status"].get("conditions") is None and job["status"] != status:
            job["status"] = status
            self.store.update("jobs", job)

    def make_pod(self, owner: Object, template: Object, labels: Object) -> Object:
        pod = copy.deepcopy(template)
        metadata = pod.setdefault("metadata", {})
        metadata["labels"] = {**metadata.get("labels", {}), **labels}
        metadata["name"] = f"{owner['metadata']['name']}-{os.urandom(3).hex()}"
        pod["status"] = {"phase": "Pending", "conditions": []}
        return self.store.add("pods", pod)

    def schedule(self) -> None:
        living = [each["metadata"]["name"] for each in self.store.of("nodes")]
        living = [name for name in living if name not in self._killed]
        used = [each["spec"].get("nodeName") for each in self.store.of("pods")]
        for pod in self.store.of("pods"):
            name = pod["metadata"]["name"]
            if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
                if "deletionTimestamp" in pod["metadata"] and name not in self._tasks:
                    self.store.remove("pods", name)
                continue
            requested = pod["spec"]["containers"][0].get("resources", {}).get("requests", {}).get("cpu", "0")
            if not living or float(requested.removesuffix("m")) >= 100_000:
                message = f"0/{len(living)} nodes are available: {len(living)} Insufficient cpu."
                condition(
                    pod, "PodScheduled", "False", reason="Unschedulable", message=message
                ) and self.store.update("pods", pod)
                continue
            node = min(living, key=used.count)
            used.append(node)
            pod["spec"]["nodeName"] = node
            self.store.update("pods", pod)
            self._tasks[name] = asyncio.get_running_loop().create_task(self.kubelet(pod))

    def delete(self, plural: str, name: str) -> None:
        """Delete an object and what belongs to it; a pod is asked to end."""
        found = self.store.objects.get((plural, name))
        if found is None:
            return
        if plural == "pods":
            if "deletionTimestamp" not in found["metadata"]:
                found["metadata"]["deletionTimestamp"] = now()
                self.store.update("pods", found)
            return
        self.store.remove(plural, name)
        if plural == "deployments":
            for each in self.replicas(found):
                self.delete("pods", each["metadata"]["name"])
            for each in self.store.of("replicasets"):
                if each["owner"] == name:
                    self.store.remove("replicasets", each["metadata"]["name"])
        if plural == "cronjobs":
            for each in [each for each in self.store.of("jobs") if owned_by(each, found)]:
                self.delete("jobs", each["metadata"]["name"])
        if plural == "jobs":
            for each in self.store.of("pods"):
                if each["metadata"]["labels"].get("job-name") == name:
                    self.delete("pods", each["metadata"]["name"])

    # A kubelet

    async def kubelet(self, pod: Object) -> None:
        """Run a pod's server until the pod is deleted."""
        name = pod["metadata"]["name"]
        try:
            await self.serve(pod, pod["spec"]["containers"][0])
        except asyncio.CancelledError:
            return  # its node is dead
        except Exception as error:
            print(f"kubelet: {name}: {error!r}", file=sys.stderr)
        self._tasks.pop(name, None)
        self.store.remove("pods", name)

    async def serve(self, pod: Object, container: Object) -> None:
        address = f"{self.network}.{next(self._numbers) % 250 + 1}"
        status: Object = {"name": "server", "image": container["image"], "ready": False, "restartCount": 0}
        pod["status"] |= {"podIP": address, "containerStatuses": [status]}
        image = self.directory / "images" / container["image"]
        if not image.is_dir():
            message = f'failed to pull and unpack image "{container["image"]}": not found'
            status["state"] = {"waiting": {"reason": "ErrImagePull", "message": message}}
            self.store.update("pods", pod)
            await self.until_deleted(pod)
            return
        command, environment = self.prepared(pod, container, image, address)
        for each in pod["spec"].get("initContainers", ()):
            await self.wait_for_services(pod, each["command"][3:])
        while "deletionTimestamp" not in pod["metadata"]:
            code, message = await self.run_once(pod, container, status, command, environment, image)
            ended = {
                "exitCode": code,
                "reason": "Error" if code else "Completed",
                "message": message,
                "finishedAt": now(),
            }
            if pod["spec"].get("restartPolicy") == "Never":
                pod["status"]["phase"] = "Failed" if code else "Succeeded"
                status["state"] = {"terminated": ended}
                self.store.update("pods", pod)
                await self.until_deleted(pod)
                return
            if "deletionTimestamp" in pod["metadata"]:
                return
            status |= {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": ended},
            }
            self.store.update("pods", pod)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(10.0, 0.5 * 2 ** status["restartCount"])):
                    await self.until_deleted(pod)
            status["restartCount"] += 1

    def prepared(
        self, pod: Object, container: Object, image: Path, address: str
    ) -> tuple[list[str], dict[str, str]]:
        """The container's command and environment, with its mounts as directories of this machine."""
        here = self.directory / "pods" / pod["metadata"]["name"]
        places = {container["workingDir"]: str(image)}
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            target = here / mount["mountPath"].lstrip("/")
            target.mkdir(parents=True)
            places[mount["mountPath"]] = str(target)
        pattern = re.compile(
            "|".join(rf"{re.escape(place)}(?=[/\"]|$)" for place in sorted(places, key=len, reverse=True))
        )

        def local(text: str) -> str:
            return pattern.sub(lambda found: places[found[0]], text).replace("0.0.0.0", address)

        for mount in container["volumeMounts"]:
            if config := volumes[mount["name"]].get("configMap"):
                for name, text in self.store.find("configmaps", config["name"])["data"].items():
                    (Path(places[mount["mountPath"]]) / name).write_text(local(text))
        environment = {"PATH": os.environ["PATH"], "HOME": str(here), "PYTHONPATH": os.getcwd()}
        environment |= {key: value for key, value in os.environ.items() if key.startswith("COVERAGE")}
        for each in container.get("envFrom", ()):
            secret = self.store.find("secrets", each["secretRef"]["name"])["data"]
            environment |= {name: base64.b64decode(value).decode() for name, value in secret.items()}
        environment["POOLCTL_RUNTIME_DIR"] = self._runtime.name
        self.containers[pod["metadata"]["name"]] = local, environment, image
        command = [local(word) for word in container["command"]]
        return ([sys.executable, "-m", *command] if command[0] == "poolctl" else command), environment

    async def wait_for_services(self, pod: Object, places: list[str]) -> None:
        """What an init container of poolctl does: wait until each service accepts a connection."""
        for place in places:
            service, _, port = place.rpartition(":")
            while "deletionTimestamp" not in pod["metadata"]:
                selector = self.store.find("services", service)["spec"]["selector"]
                addresses = [each["status"]["podIP"] for each in self.active(selector) if is_ready(each)]
                if any(accepts(address, int(port)) for address in addresses):
                    break
                await asyncio.sleep(0.05)

    async def run_once(
        self,
        pod: Object,
        container: Object,
        status: Object,
        command: list[str],
        environment: dict[str, str],
        image: Path,
    ) -> tuple[int, str]:
        """Run the server once; its exit status, and the end of its output if it failed."""
        name = pod["metadata"]["name"]
        path = self.directory / "pods" / name / "log"
        with path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, env=environment, cwd=image, stdout=log, stderr=log, start_new_session=True
            )
        self._processes[name] = process
        pod["status"]["phase"] = "Running"
        status["state"] = {"running": {"startedAt": now()}}
        self.store.update("pods", pod)
        loop = asyncio.get_running_loop()
        ended, deleted = loop.create_task(process.wait()), loop.create_task(self.until_deleted(pod))
        probes = loop.create_task(self.probe(pod, container, status))
        try:
            await asyncio.wait({ended, deleted}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
                await asyncio.wait({ended}, timeout=grace)
            if not ended.done():
                process.kill()
                await ended
        except asyncio.CancelledError:
            probes.cancel()  # first: the kubelet of a killed node sees nothing of the end
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        finally:
            probes.cancel()
            deleted.cancel()
        status["ready"] = False
        condition(pod, "Ready", "False")
        code = process.returncode or 0
        message = path.read_text()[-2000:] if code else ""
        return (code if code >= 0 else 128 - code), message

    async def probe(self, pod: Object, container: Object, status: Object) -> None:
        """Follow the readiness probe, which is asked for the first time a period after the start."""
        readiness = container.get("readinessProbe")
        while True:
            await asyncio.sleep((readiness or {}).get("periodSeconds", 1) / PROBES_FASTER)
            is_now = await asks(container, readiness, pod["status"]["podIP"])
            if is_now != status["ready"]:
                status["ready"] = is_now
                condition(pod, "Ready", "True" if is_now else "False")
                self.store.update("pods", pod)

    async def until_deleted(self, pod: Object) -> None:
        async with self.store.changed:
            await self.store.changed.wait_for(lambda: "deletionTimestamp" in pod["metadata"])

    # Services

    async def open_service(self, service: Object) -> str:
        """HOST:PORT, where each connection is forwarded to one of the Service's endpoints, as a node does it."""
        selector, (port,) = service["spec"]["selector"], service["spec"]["ports"]
        known: list[str] = []
        turns = itertools.count()

        def replace(found: list[str]) -> None:
            known[:] = found

        async def follow() -> None:
            while True:
                found = [each["status"]["podIP"] for each in self.active(selector) if is_ready(each)]
                asyncio.get_running_loop().call_later(ENDPOINTS_SECONDS, replace, found)
                await asyncio.sleep(0.05)

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            pod = None
            try:
                from_pod, pod = await asyncio.open_connection(known[next(turns) % len(known)], port["port"])
                await asyncio.gather(copied(reader, pod), copied(from_pod, writer))
            except (OSError, ZeroDivisionError):
                for each in filter(None, (writer, pod)):
                    each.transport.abort()
            finally:
                for each in filter(None, (writer, pod)):
                    each.close()

        server = await asyncio.start_server(forward, f"{self.network}.251", 0)
        task = asyncio.get_running_loop().create_task(follow())
        self._tasks[f"service {service['metadata']['name']}"] = task
        task.add_done_callback(lambda task: server.close())
        host, number = server.sockets[0].getsockname()
        return f"{host}:{number}"

    # Nodes

    async def kill(self, node: str) -> None:
        """A node loses its power: its processes end, and nothing says so."""
        self._killed[node] = time.monotonic()
        for pod in self.store.of("pods"):
            if pod["spec"].get("nodeName") == node and (task := self._tasks.get(pod["metadata"]["name"])):
                task.cancel()
                await asyncio.wait({task})

    def judge_nodes(self) -> None:
        for node, since in self._killed.items():
            lost_seconds = time.monotonic() - since - NODE_GRACE_SECONDS
            if lost_seconds < 0:
                continue
            for pod in self.store.of("pods"):
                if pod["spec"].get("nodeName") != node:
                    continue
                if condition(pod, "Ready", "False"):
                    self.store.update("pods", pod)
                tolerated = [each["tolerationSeconds"] for each in pod["spec"].get("tolerations", ())]
                if lost_seconds >= min(tolerated, default=300):
                    self.delete("pods", pod["metadata"]["name"])

    def reap(self, process: asyncio.subprocess.Process) -> None:
        """Follow a command whose connection has ended; it is killed with the cluster."""
        self._left.append(process)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        for process in self._left:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._runtime.cleanup()


async def wait_for_all(*awaitables: Any) -> None:
    await asyncio.gather(*awaitables)


async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction of a connection, with its end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def owned_by(found: Object, owner: Object) -> bool:
    uids = [each["uid"] for each in found["metadata"].get("ownerReferences", ())]
    return owner["metadata"]["uid"] in uids


def is_ready(pod: Object) -> bool:
    return any(
        each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ())
    )


def condition(pod: Object, kind: str, value: str, **more: str) -> bool:
    """Set a condition of a pod; whether that has changed it."""
    conditions = pod["status"].setdefault("conditions", [])
    found = next((each for each in conditions if each["type"] == kind), None)
    if found is not None and found["status"] == value:
        return False
    if found is not None:
        conditions.remove(found)
    conditions.append({"type": kind, "status": value, "lastTransitionTime": now(), **more})
    return True


def accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 0.2).close()
    except OSError:
        return False
    return True


async def asks(container: Object, probe: Object | None, address: str) -> bool:
    """What a kubelet's probe finds; without a probe a running container is ready."""
    if probe is None:
        return True
    ports = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
    how = probe.get("httpGet") or probe.get("tcpSocket")
    if how is None:
        return True
    try:
        async with asyncio.timeout(30):  # one failure is enough here
            reader, writer = await asyncio.open_connection(address, ports[how["port"]])
            try:
                if "path" not in how:
                    return True
                writer.write(f"GET {how['path']} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
                status = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return len(status) > 1 and status[1].startswith((b"2", b"3"))


def as_status(error: Refused) -> Response:
    body = {
        "kind": "Status",
        "status": "Failure",
        "code": error.code,
        "reason": error.reason,
        "message": error.message,
    }
    return JSONResponse(body, status_code=error.code)


def application(directory: Path, nodes: int, rules: list[Object] | None, network: str) -> Starlette:
    """The cluster as an ASGI application; its state is made when it starts."""
    state: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        store = Store()
        cluster = Cluster(store, directory, nodes, network)
        api = state["api"] = Api(store, cluster, rules)
        app.router.routes.extend(api.routes())
        running = asyncio.get_running_loop().create_task(cluster.run())
        yield
        running.cancel()
        await cluster.close()

    app = Starlette(lifespan=lifespan)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return as_status(error)

    async def missing(request: Request, error: Exception) -> Response:
        return PlainTextResponse("404 page not found\n", status_code=404)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(Missing, missing)

    async def as_told(scope: Any, receive: Any, send: Any) -> None:
        api = state.get("api")
        if (
            scope["type"] == "http"
            and api is not None
            and not scope["path"].startswith("/fake")
            and api.body is not None
        ):
            await Response(api.body, status_code=api.status, media_type="application/json")(
                scope, receive, send
            )
        else:
            await app(scope, receive, send)

    return as_told  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--role", type=Path)
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    rules = yaml.safe_load(arguments.role.read_text())["rules"] if arguments.role else None
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "operator", "user": {"token": TOKEN}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "operator"}}],
    }  # fmt: skip

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            (directory / "kubeconfig").write_text(yaml.safe_dump(config))

    server = Server(
        uvicorn.Config(
            application(directory, arguments.nodes, rules, f"127.{port >> 8}.{port & 255}"),
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
    )
    server.run([listener])


if __name__ == "__main__":
    main()
