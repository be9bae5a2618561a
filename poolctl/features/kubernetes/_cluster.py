"""A client of the cluster's API: objects are plain dictionaries, and every failure is a ControlError.

lightkube is imported here and nowhere else. Each request ends within `_REQUEST_SECONDS`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT, FAILED, NO_SUPERVISOR, NOT_PERMITTED, USAGE
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
_REQUEST_SECONDS = 8.0
_FORBIDDEN, _NOT_FOUND, _CONFLICT = 403, 404, 409
_NEEDED = "pip install 'poolctl[kubernetes]'"


class NotFound(ControlError):
    """The cluster has no such object, or no such kind."""


class Cluster:
    """A namespace of a cluster. Use it as an asynchronous context manager."""

    def __init__(
        self, context: str | None, namespace: str | None, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Read the kubeconfig, or inside a pod its service account. Raises ControlError."""
        try:
            import httpx2
            from lightkube import AsyncClient, KubeConfig
            from lightkube.core.exceptions import ConfigError
        except ImportError as error:
            raise ControlError(
                f"a pool on Kubernetes needs lightkube: {error}", exit_code=USAGE, hint=_NEEDED
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
        except (
            ConfigError,
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            AssertionError,
        ) as error:
            message = f"no cluster can be reached by the kubeconfig: {error or type(error).__name__}"
            raise ControlError(message, exit_code=NO_SUPERVISOR, hint=hint) from None
        self.url = str(config.cluster.server)
        self.context = config.context_name
        self.namespace: str = self._client.namespace

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._client.close()

    def __repr__(self) -> str:
        return f"<Cluster {self.context}, namespace {self.namespace}>"

    async def list(self, kind: str, labels: Mapping[str, str]) -> tuple[list[Table], str]:
        """The objects of this kind with these labels, and the resource version at which `watch` continues."""
        async with self._request(f"list {KINDS[kind][2]}"):
            found = self._client.list(_resource(kind), labels=dict(labels))
            return [_plain(each) async for each in found], found.resourceVersion

    async def find(self, kind: str, name: str) -> Table | None:
        """The object with this name, or None."""
        try:
            async with self._request(f"get {kind} {name}"):
                return _plain(await self._client.get(_resource(kind), name))
        except NotFound:
            return None

    async def apply(self, wanted: Table, *, force: bool = False, dry_run: bool = False) -> Table:
        """Create the object or change its fields to these (server-side apply).

        Fields that another manager has set differently are a conflict (exit 8) unless `force` takes them
        over.
        """
        kind, name = wanted["kind"], wanted["metadata"]["name"]
        async with self._request(f"apply {kind} {name}"):
            resource = _resource(kind)
            done = await self._client.patch(
                resource, name, resource(wanted), patch_type=_apply_patch(), force=force, dry_run=dry_run
            )
        return _plain(done)

    async def change(self, kind: str, name: str, changes: Table) -> Table:
        """Merge these changes into the object (JSON merge patch); None removes a field."""
        async with self._request(f"patch {kind} {name}"):
            return _plain(await self._client.patch(_resource(kind), name, changes, patch_type=_merge_patch()))

    async def delete(self, kind: str, name: str) -> None:
        """Delete the object and its dependents; a missing object is not an error."""
        from lightkube.types import CascadeType

        try:
            async with self._request(f"delete {kind} {name}"):
                await self._client.delete(_resource(kind), name, cascade=CascadeType.BACKGROUND)
        except NotFound:
            pass

    async def watch(
        self, kind: str, labels: Mapping[str, str], version: str
    ) -> AsyncIterator[tuple[str, Table]]:
        """Yield ADDED, MODIFIED or DELETED, and the object, for each change after this resource version.

        Ends when the API server ends it. Raises ControlError.
        """
        from lightkube.types import on_error_raise

        with self._translated(f"watch {KINDS[kind][2]}"):
            watched = self._client.watch(
                _resource(kind), labels=dict(labels), resource_version=version, on_error=on_error_raise
            )
            async for change, found in watched:
                yield str(change), _plain(found)

    async def log(
        self, pod: str, *, lines: int | None, since_seconds: int | None, follow: bool
    ) -> AsyncIterator[str]:
        """The log lines of a pod's server; each begins with its time."""
        with self._translated(f"read the log of pod {pod}"):
            found = self._client.log(
                pod, container="server", follow=follow, tail_lines=lines, since=since_seconds, timestamps=True
            )
            async for line in found:
                yield line

    @asynccontextmanager
    async def _request(self, what: str) -> AsyncIterator[None]:
        with self._translated(what):
            async with asyncio.timeout(_REQUEST_SECONDS):
                yield

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        import httpx2
        from lightkube import ApiError
        from lightkube.core.exceptions import ConfigError

        try:
            yield
        except ApiError as error:
            raise self._refused(what, error.status) from None
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            message = f"the cluster's API at {self.url} answered {status} to: {what}"
            if status == _NOT_FOUND:  # the API server's answer for a group or version that it does not have
                raise NotFound(message, exit_code=NO_SUPERVISOR) from None
            raise ControlError(
                message, exit_code=NOT_PERMITTED if status in (401, _FORBIDDEN) else NO_SUPERVISOR
            ) from None
        except TimeoutError:
            raise self._away("does not answer") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise self._away(f"does not answer: {error or type(error).__name__}") from None
        except ConfigError as error:
            raise ControlError(
                str(error), exit_code=NOT_PERMITTED, hint="see the user of the context in the kubeconfig"
            ) from None
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
            raise self._away(f"gave no valid answer to: {what} ({type(error).__name__})") from None

    def _away(self, why: str) -> ControlError:
        hint = (
            f"the servers go on serving; kubectl --context {self.context} get --raw /readyz shows its state"
        )
        return ControlError(f"the cluster's API at {self.url} {why}", exit_code=NO_SUPERVISOR, hint=hint)

    def _refused(self, what: str, status: Any) -> ControlError:
        code, message = (
            status.code or 0,
            " ".join(str(status.message or status.reason or "no reason given").split()),
        )
        if code == _NOT_FOUND:
            hint = "docs/kubernetes.md says which versions of Kubernetes have what"
            if message.startswith("namespaces "):
                hint = f"kubectl create namespace {self.namespace}"
            return NotFound(f"cannot {what}: {message}", exit_code=FAILED, hint=hint)
        if code in (401, _FORBIDDEN):
            return ControlError(
                message, exit_code=NOT_PERMITTED, hint="docs/kubernetes.md has the Role that poolctl needs"
            )
        if code == _CONFLICT:
            return ControlError(
                f"cannot {what}: {message}", exit_code=CONFLICT, hint="--force takes these fields over"
            )
        return ControlError(f"cannot {what}: {message}", exit_code=FAILED)


def _resource(kind: str) -> Any:
    """The lightkube resource class of this kind, whose objects are plain dictionaries."""
    from lightkube.generic_resource import GenericNamespacedResource, create_api_info

    group, version, plural = KINDS[kind]
    return type(
        kind, (GenericNamespacedResource,), {"_api_info": create_api_info(group, version, kind, plural)}
    )


def _plain(found: Any) -> Table:
    """The object as a plain dictionary. Raises ValueError, LookupError or TypeError if it has no name."""
    if not isinstance(found, dict) or not isinstance(found["metadata"]["name"], str):
        raise ValueError("no object")
    return dict(found)


def _apply_patch() -> Any:
    from lightkube.types import PatchType

    return PatchType.APPLY


def _merge_patch() -> Any:
    from lightkube.types import PatchType

    return PatchType.MERGE
