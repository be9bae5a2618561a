"""The keys of [kubernetes]: how an exported pool runs on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from poolctl.config.model.section import Section, Table, field

if TYPE_CHECKING:
    from poolctl.config.values.value_types import Duration, Text, TimeZone, Words


class Requests(Section):
    """The resources that the cluster reserves for each worker, as quantities of Kubernetes."""

    cpu: Text | None = field(None, 'Processor time, such as "100m" for a tenth of a core.')
    memory: Text | None = field(None, 'Memory, such as "128M".')


class Kubernetes(Table):
    """[kubernetes]: how every server of the pool runs on a cluster."""

    table_name: ClassVar[str] = "kubernetes"

    image: Text | None = field(None, "The image with the applications and poolctl.")
    namespace: Text | None = field(None, "The namespace of all objects. Left out: the one that kubectl uses.")
    directory: Text = field(
        "/app", "The directory of the image that corresponds to the directory of the file."
    )
    node_lost_after: Duration | None = field(
        None,
        "How long a node may be unreachable before its workers are replaced elsewhere. Left out: the cluster's"
        " time, usually 5m.",
    )
    stop_delay: Duration = field(
        5.0, "How long a worker serves on after it was told to stop, while the cluster learns that it leaves."
    )
    time_zone: TimeZone = field(
        "Etc/UTC", 'The time zone of `every`, such as Europe/Berlin. "": the cluster\'s own.'
    )
    gateway: Text | None = field(
        None, 'The Gateway of the routes, which become HTTPRoutes: its name, or "NAMESPACE/NAME".'
    )
    ingress_class: Text | None = field(
        None, "The class of the routes' Ingresses, for a cluster without the Gateway API."
    )
    secrets: Words = field((), "Names of existing Secrets, whose values become environment variables.")
    requests: Requests = field(Requests.with_defaults(), "The resources that are reserved for each worker.")
