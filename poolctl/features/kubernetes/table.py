"""The keys of [kubernetes]: how an exported pool runs on a cluster."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from poolctl.config.model.section import Section, Table
from poolctl.config.values.plain import EMPTY
from poolctl.config.values.value_types import Duration, DurationOrNone, Labels, Text, TimeZone, Words


class Requests(Section, frozen=True):
    """The resources that the cluster reserves for each worker, as quantities of Kubernetes."""

    cpu: Text | None = None
    """Processor time, such as "100m" for a tenth of a core."""
    memory: Text | None = None
    """Memory, such as "128M"; at most limits.memory of a server."""


class Kubernetes(Table, frozen=True):
    """[kubernetes]: how every server of the pool runs on a cluster."""

    table_name: ClassVar[str] = "kubernetes"

    image: Text | None = None
    """The image with the applications and poolctl."""
    namespace: Text | None = None
    """The namespace of all objects. Left out: the one that kubectl uses."""
    directory: Text = "/app"
    """The directory of the image that corresponds to the directory of the file."""
    node_lost_after: DurationOrNone = Field(default=None, validate_default=True)
    """How long a node may be unreachable before its workers are replaced elsewhere. Left out: the cluster's time,
    usually 5m.
    """
    stop_delay: Duration = Field(default="5s", validate_default=True)
    """How long a worker serves on after it was told to stop, while the cluster learns that it leaves."""
    time_zone: TimeZone = "Etc/UTC"
    """The time zone of `every`, such as Europe/Berlin. "": the cluster's own."""
    gateway: Text | None = None
    """The Gateway of the routes, which become HTTPRoutes: its name, or "NAMESPACE/NAME"."""
    ingress_class: Text | None = None
    """The class of the routes' Ingresses, for a cluster without the Gateway API."""
    ingress_tls: Text | None = None
    """The name of the Secret with the certificate of the Ingresses."""
    secrets: Words = Field(default=(), validate_default=True)
    """Names of existing Secrets, whose values become environment variables; they override those of env_file."""
    requests: Requests = Requests()
    """The resources that are reserved for each worker."""
    pull_secrets: Words = Field(default=(), validate_default=True)
    """Names of existing Secrets with which the image is pulled."""
    service_account: Text | None = None
    """The service account of the workers. Left out: they have no token for the cluster."""
    annotations: Labels = Field(default=EMPTY, validate_default=True)
    """Annotations of every object and pod."""
