"""A client of the cluster's API: objects are plain dictionaries, and every failure is a ControlError.

lightkube, and the WebSocket client that it brings, are imported here and nowhere else. Each request ends within
`_REQUEST_SECONDS`; a command in a pod begins within that time.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT, FAILED, NO_SUPERVISOR, NOT_PERMITTED, TIMED_OUT, USAGE
from poolctl.installation import install_extra_command
from poolctl.json_form import Table

MANAGER = "poolctl"
# The kinds in the order in which they are removed: first those that create pods.
KINDS = {
    "HorizontalPodAutoscaler": ("autoscaling", "v2", "horizontalpodautoscalers"),
    "HTTPRoute": ("gateway.networking.k8s.io", "v1", "httproutes"),
    "Ingress": ("networking.k8s.io", "v1", "ingresses"),
    "Deployment": ("apps", "v1", "deployments"),
    "CronJob": ("batch", "v1", "cronjobs"),
    "Job": ("batch", "v1", "jobs"),
    "Service": ("", "v1", "services"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Secret": ("", "v1", "secrets"),
    "ReplicaSet": ("apps", "v1", "replicasets"),
    "Pod": ("", "v1", "pods"),
}
# Together with the time between two lists of a command that waits, it ends every command within ten seconds if the
# cluster does not answer.
_REQUEST_SECONDS = 6.0
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT = 401, 403, 404, 409
_GONE = 410
# Commands in pods: the first byte of each message is its channel, and the last message is the status of the command.
_CHANNELS = "v4.channel.k8s.io"
_STDOUT, _STDERR, _STATUS = 1, 2, 3
_PING_SECONDS = 20.0  # how often the connection is checked, and the time for an answer
_LARGEST_MESSAGE_BYTES = 1024 * 1024
_MOST_REFUSAL_BYTES = 64 * 1024
_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class NotFound(ControlError):
    """The cluster has no such object, or no such kind."""


class Execution(NamedTuple):
    """The exit code and the output of a command in a pod."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Cluster:
    """A namespace of a cluster. Use it as an asynchronous context manager."""

    def __init__(
        self, context: str | None, namespace: str | None, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Read the kubeconfig, or inside a pod its service account. Raises ControlError."""
        try:
            import httpx2
            from lightkube import AsyncClient, KubeConfig
            from lightkube.config import client_adapter
        except ImportError as error:
            raise ControlError(
                f"a pool on Kubernetes needs lightkube: {error}",
                exit_code=USAGE,
                hint=install_extra_command("kubernetes"),
            ) from None
        hint = "set KUBECONFIG to the cluster's kubeconfig, or context in [kubernetes] to one of its contexts"
        try:
            if context is None and "KUBERNETES_SERVICE_HOST" in environment:
                config = KubeConfig.from_service_account().get()
            else:
                config = KubeConfig.from_file(environment.get("KUBECONFIG", "~/.kube/config")).get(context)
            assert config is not None  # no default is given
            timeout = httpx2.Timeout(_REQUEST_SECONDS)
            self._client = AsyncClient(config, namespace=namespace, field_manager=MANAGER, timeout=timeout)
            # For watches, logs and commands in pods. lightkube does not report why the API server refuses one, and
            # resumes a watch by itself from a version that the API server may no longer have.
            parameters = client_adapter.ConnectionParams(timeout=timeout)
            self._streams = client_adapter.AsyncClient(config, parameters)
            self._streams.event_hooks = {"response": [self._raise_for_refusal]}
        except Exception as error:  # lightkube checks little of what the file holds
            message = f"no cluster can be reached by the kubeconfig: {error or type(error).__name__}"
            raise ControlError(message, exit_code=NO_SUPERVISOR, hint=hint) from None
        self.url = str(config.cluster.server)
        self.context = config.context_name
        self.namespace: str = self._client.namespace

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._client.close()
        await self._streams.aclose()

    def __repr__(self) -> str:
        return f"<Cluster {self.context}, namespace {self.namespace}>"

    async def list(self, kind: str, labels: Mapping[str, str]) -> tuple[list[Table], str]:
        """The objects of this kind with these labels, and the resource version at which `watch` continues."""
        async with self._within_request_timeout(f"list {KINDS[kind][2]}"):
            found = self._client.list(_resource_class(kind), labels=dict(labels))
            return [_as_table(each) async for each in found], found.resourceVersion

    async def find(self, kind: str, name: str) -> Table | None:
        """The object of this kind and name, or None."""
        try:
            async with self._within_request_timeout(f"get {kind} {name}"):
                return _as_table(await self._client.get(_resource_class(kind), name))
        except NotFound:
            return None

    async def apply(self, wanted: Table, *, force: bool) -> Table:
        """Create or update the object `wanted` by a server-side apply, and return the resulting object.

        If another manager has set a field differently, the apply fails with exit code 8, unless `force` is true.
        """
        from lightkube.types import PatchType

        kind, name = wanted["kind"], wanted["metadata"]["name"]
        async with self._within_request_timeout(f"apply {kind} {name}"):
            resource, how = _resource_class(kind), PatchType.APPLY
            done = await self._client.patch(resource, name, resource(wanted), patch_type=how, force=force)
            return _as_table(done)

    async def patch(self, kind: str, name: str, changes: Table) -> Table:
        """Merge these changes into the object (JSON merge patch); None removes a field."""
        from lightkube.types import PatchType

        async with self._within_request_timeout(f"patch {kind} {name}"):
            resource, how = _resource_class(kind), PatchType.MERGE
            return _as_table(await self._client.patch(resource, name, changes, patch_type=how))

    async def delete(self, kind: str, name: str) -> None:
        """Delete the object and its dependents; a missing object is not an error."""
        from lightkube.types import CascadeType

        try:
            async with self._within_request_timeout(f"delete {kind} {name}"):
                await self._client.delete(_resource_class(kind), name, cascade=CascadeType.BACKGROUND)
        except NotFound:
            pass

    async def watch(
        self, kind: str, labels: Mapping[str, str], version: str
    ) -> AsyncIterator[tuple[str, Table]]:
        """Yield ADDED, MODIFIED or DELETED, and the object, for each change after this resource version.

        Ends when the API server ends it, or no longer has this version. Raises ControlError.
        """
        group, api, plural = KINDS[kind]
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        parameters = {"watch": True, "labelSelector": selector, "resourceVersion": version}
        what = f"watch {plural}"
        place = f"apis/{group}/{api}" if group else f"api/{api}"
        path = f"{place}/namespaces/{self.namespace}/{plural}"
        with self._translating_errors(what):
            async with aclosing(self._lines(what, path, parameters, follow=True)) as lines:
                async for line in lines:
                    change = json.loads(line)
                    if change["type"] != "ERROR":
                        yield str(change["type"]), _as_table(change["object"])
                    elif change["object"].get("code") == _GONE:
                        return
                    else:
                        raise self._refusal(what, change["object"])

    async def log(
        self, pod: str, *, lines: int | None, since_seconds: int | None, follow: bool
    ) -> AsyncIterator[str]:
        """Yield log lines of a pod's server, each with a timestamp in front; with `follow` also new ones as they come.

        At most the last `lines`, and only those of the last `since_seconds`; None means no limit.
        """
        what = f"read the log of pod {pod}"
        given: Table = {"follow": follow, "sinceSeconds": since_seconds, "tailLines": lines}
        parameters = {name: value for name, value in given.items() if value is not None}
        parameters |= {"container": "server", "timestamps": True}
        path = f"api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        with self._translating_errors(what):
            async with aclosing(self._lines(what, path, parameters, follow=follow)) as found:
                async for line in found:
                    yield line

    async def _lines(
        self, what: str, path: str, parameters: Mapping[str, Any], *, follow: bool
    ) -> AsyncGenerator[str]:
        """The lines of a response; with `follow` the time between two of them is not limited."""
        import httpx2

        timeout = httpx2.Timeout(_REQUEST_SECONDS, read=None if follow else _REQUEST_SECONDS)
        reading = self._streams.stream(
            "GET", path, params=dict(parameters), timeout=timeout, extensions={"poolctl": what}
        )
        async with reading as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                yield line

    async def run(
        self, pod: str, command: Sequence[str], *, most_bytes: int, seconds: float | None = None
    ) -> Execution:
        """Run a command in the container of a pod's server until it ends.

        Raises ControlError, also if the command prints more than `most_bytes` or does not end within `seconds`. If this
        call is cancelled, the command's standard input is closed.
        """
        from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
        from httpx2.websockets import HTTPXWSException, WebSocketUpgradeError
        from wsproto.utilities import ProtocolError

        what = f"run a command in pod {pod}"
        try:
            with self._translating_errors(what):
                try:
                    return await self._run(what, pod, command, most_bytes, seconds)
                except BaseExceptionGroup as raised:
                    raise first_exception(raised) from None
        except WebSocketUpgradeError as error:
            raise self._status_error(what, error.response.status_code) from None
        except (
            HTTPXWSException,
            ProtocolError,
            BrokenResourceError,
            ClosedResourceError,
            EndOfStream,
        ) as error:
            reason = str(getattr(error, "reason", "")) or type(error).__name__
            raise self._unavailable(
                f"ended the connection before the command had ended ({reason}): {what}"
            ) from None

    async def _run(
        self, what: str, pod: str, command: Sequence[str], most_bytes: int, seconds: float | None
    ) -> Execution:
        parameters: dict[str, Any] = {
            "container": "server", "command": list(command), "stdin": True, "stdout": True, "stderr": True,
        }  # fmt: skip
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(_REQUEST_SECONDS):
                connecting = self._streams.websocket(
                    f"api/v1/namespaces/{self.namespace}/pods/{pod}/exec",
                    params=parameters,
                    subprotocols=[_CHANNELS],
                    max_message_size_bytes=_LARGEST_MESSAGE_BYTES,
                    keepalive_ping_interval_seconds=_PING_SECONDS,
                    keepalive_ping_timeout_seconds=_PING_SECONDS,
                    extensions={"poolctl": what},
                )
                session = await stack.enter_async_context(connecting)
            self._check_handshake(what, session.response)
            try:
                async with asyncio.timeout(seconds):
                    return await self._receive_output(what, session, most_bytes)
            except TimeoutError:
                message = f"cannot {what}: it has not ended within {seconds:g} s"
                raise ControlError(message, exit_code=TIMED_OUT) from None

    def _check_handshake(self, what: str, response: Any) -> None:
        """Raise ControlError unless the response accepts the WebSocket and its subprotocol (RFC 6455 section 4.1)."""
        key = response.request.headers["sec-websocket-key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + _ACCEPT_SUFFIX, usedforsecurity=False).digest()).decode()
        found = response.headers
        if found.get("sec-websocket-accept") != accept or found.get("sec-websocket-protocol") != _CHANNELS:
            raise self._unavailable(f"does not speak {_CHANNELS} over a WebSocket, asked to: {what}")

    async def _receive_output(self, what: str, session: Any, most_bytes: int) -> Execution:
        output = {_STDOUT: bytearray(), _STDERR: bytearray()}
        while True:
            message = await session.receive_bytes()
            channel, data = message[0], message[1:]
            if channel in output:
                output[channel] += data
                if sum(map(len, output.values())) > most_bytes:
                    message = f"cannot {what}: it prints more than {most_bytes} bytes"
                    raise ControlError(message, exit_code=FAILED, hint="let it print less")
            elif data and channel == _STATUS:
                return Execution(self._exit_code(what, data), *map(bytes, output.values()))
            elif data:  # an empty message reports that the streams are there
                raise ValueError(f"channel {channel}")

    def _exit_code(self, what: str, message: bytes) -> int:
        """The exit code in the command's status. Raises ControlError if the command could not run.

        Raises ValueError, LookupError or TypeError for an invalid message.
        """
        status = json.loads(message)
        if status["status"] == "Success":
            return 0
        if status.get("reason") != "NonZeroExitCode":
            raise self._refusal(what, status)
        (code,) = (
            int(each["message"]) for each in status["details"]["causes"] if each["reason"] == "ExitCode"
        )
        return min(max(code, 1), 255)

    async def _raise_for_refusal(self, response: Any) -> None:
        """If the response is an error other than 401, read its body now and raise ControlError with the reason."""
        # Later the body cannot be read. After a 401 the token may have to be read again.
        if not response.is_error or response.status_code == _UNAUTHORIZED:
            return
        what, text = response.request.extensions["poolctl"], b""
        async with asyncio.timeout(_REQUEST_SECONDS):
            async for piece in response.aiter_bytes():
                text += piece
                if len(text) > _MOST_REFUSAL_BYTES:
                    break
        try:
            message = json.loads(text)["message"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._status_error(what, response.status_code) from None
        raise self._refusal(what, {"code": response.status_code, "message": message})

    @asynccontextmanager
    async def _within_request_timeout(self, what: str) -> AsyncIterator[None]:
        with self._translating_errors(what):
            async with asyncio.timeout(_REQUEST_SECONDS):
                yield

    @contextmanager
    def _translating_errors(self, what: str) -> Iterator[None]:
        import httpx2
        from lightkube import ApiError
        from lightkube.core.exceptions import ConfigError

        try:
            yield
        except ApiError as error:
            found = {name: getattr(error.status, name) for name in ("code", "message", "reason")}
            raise self._refusal(what, found) from None
        except httpx2.HTTPStatusError as error:
            raise self._status_error(what, error.response.status_code) from None
        except TimeoutError:
            raise self._unavailable("does not answer") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise self._unavailable(f"does not answer: {error or type(error).__name__}") from None
        except ConfigError as error:
            raise ControlError(
                str(error), exit_code=NOT_PERMITTED, hint="see the user of the context in the kubeconfig"
            ) from None
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
            raise self._unavailable(f"gave no valid answer to: {what} ({type(error).__name__})") from None

    def _status_error(self, what: str, status: int) -> ControlError:
        """The error for a response that gives no reason but its status."""
        message = f"the cluster's API at {self.url} answered {status} to: {what}"
        if status == _NOT_FOUND:  # the API server's answer for a group or version that it does not have
            return NotFound(message, exit_code=NO_SUPERVISOR)
        is_refused = status in (_UNAUTHORIZED, _FORBIDDEN)
        return ControlError(message, exit_code=NOT_PERMITTED if is_refused else NO_SUPERVISOR)

    def _unavailable(self, why: str) -> ControlError:
        hint = (
            f"the servers go on serving; kubectl --context {self.context} get --raw /readyz shows its state"
        )
        return ControlError(f"the cluster's API at {self.url} {why}", exit_code=NO_SUPERVISOR, hint=hint)

    def _refusal(self, what: str, status: Mapping[str, Any]) -> ControlError:
        code = status.get("code")
        message = " ".join(str(status.get("message") or status.get("reason") or "no reason given").split())
        if code == _NOT_FOUND:
            hint = "docs/kubernetes.md says which versions of Kubernetes have what"
            if message.startswith("namespaces "):
                hint = f"kubectl create namespace {self.namespace}"
            return NotFound(f"cannot {what}: {message}", exit_code=FAILED, hint=hint)
        if code in (_UNAUTHORIZED, _FORBIDDEN):
            return ControlError(
                message, exit_code=NOT_PERMITTED, hint="docs/kubernetes.md has the Role that poolctl needs"
            )
        if code == _CONFLICT:
            return ControlError(
                f"cannot {what}: {message}", exit_code=CONFLICT, hint="--force takes these fields over"
            )
        return ControlError(f"cannot {what}: {message}", exit_code=FAILED)


def first_exception(raised: BaseException) -> BaseException:
    """The first exception in a group, which may be nested; `raised` itself if it is no group."""
    while isinstance(raised, BaseExceptionGroup):
        raised = raised.exceptions[0]
    return raised


def _resource_class(kind: str) -> Any:
    """The lightkube resource class of this kind, whose objects are plain dictionaries."""
    from lightkube.generic_resource import GenericNamespacedResource, create_api_info

    group, version, plural = KINDS[kind]
    return type(
        kind, (GenericNamespacedResource,), {"_api_info": create_api_info(group, version, kind, plural)}
    )


def _as_table(found: Any) -> Table:
    """The object as a plain dictionary. Raises ValueError, LookupError or TypeError if it has no name."""
    if not isinstance(found, dict) or not isinstance(found["metadata"]["name"], str):
        raise ValueError("no object")
    return dict(found)
