"""Which keys of a server are supported, ignored or refused on Kubernetes: one list for each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from poolctl.config import Finding, Probe, ServerConfig, masked
from poolctl.config.values.plain import PROBES, placeholders
from poolctl.config.values.secrets import masked_text
from poolctl.json_form import Table
from poolctl.time_windows import parse_window

if TYPE_CHECKING:
    from .table import Kubernetes

# Keys that are compiled into an object or passed to `poolctl serve` in the pod.
MAPPED = frozenset((
    "name", "bind", "expose", "app", "app_dir", "factory", "interface", "handler_key", "command", "socket", "stdin",
    "job", "every", "overlap", "env", "env_file", "cwd", "umask", "scale", "disabled", "on_demand", "http",
    "start_timeout", "stop_timeout", "stop_signal", "stop_group", "drain_timeout", "health", "limits", "log",
    "depends_on", "image", "ready_after",
))  # fmt: skip
# Keys that are ignored with a warning, because the server runs without them, and what happens instead.
IGNORED: Mapping[str, str] = {
    "python": "the image's interpreter is used",
    "reload_signal": "a changed file makes new pods",
    "socket_mode": "a pod has no Unix socket that others could reach",
    "socket_owner": "a pod has no Unix socket that others could reach",
    "backend_protocol": "the ingress has to be told what the program speaks",
    "forward": "connections go to the program itself",
    "preload": "each pod imports the application itself",
    "tags": "they select nothing on a cluster",
    "labels": "they are not labels of Kubernetes",
    "mandatory": "the other servers go on without it",
    "restart": "Kubernetes restarts a worker always, with its own delays",
    "ready_line": "Kubernetes does not read what a pod prints: a readiness probe can say when it is ready",
    "recovery": "Kubernetes restarts a worker whose liveness probe fails",
    "watch": "code changes with the image",
}
# Keys that are refused, because traffic or safety depends on them: which values, why, and the fix.
UNSUPPORTED: Mapping[str, tuple[Callable[[Any], bool], str, str]] = {
    "user": (bool, "a pod has the user of its image", "leave it out, and give the image a USER"),
    "tls": (bool, "certificates are files of this machine", "end TLS in front of the cluster's services"),
    "hooks": (bool, "hooks run once for all workers", "run them as a job before the server is deployed"),
    "notify": (bool, "Kubernetes does not know sd_notify", "give the server a health probe instead"),
}
# Programs that open their port themselves, from PORT or their own configuration.
_OPENS_PORT = re.compile(r"(?:node|nodejs|bun|deno|npm|npx|yarn|pnpm|java|php)[0-9.]*")
_SHELL = re.compile(r"(?:ba|da|z|a)?sh")
_BEFORE_PROGRAM = re.compile(r"env|exec|nice|tini|dumb-init|-.*|[0-9]+|[A-Za-z_][A-Za-z0-9_]*=.*")
# Keys of probes without an equivalent in a pod. For an app's HTTP probe, `poolctl serve` applies them.
_NOT_IN_PODS = ("interval_fall", "interval_rise", "rise_count_warn", "jitter")
# Argo CD applies a wave once the earlier waves are healthy.
WAVE = "argocd.argoproj.io/sync-wave"
_FIX_OF_VARIABLE = "use letters, digits, underscores, hyphens and dots, a letter first"
_WHOLE_HOUR = (1 << 60) - 1
_MAX_NAME_LENGTH = 63  # the name of a Service is a label of RFC 1035
MAX_JOB_NAME_LENGTH = 52  # the names of its pods and of a CronJob's Jobs are longer
_variable = re.compile(r"(?!\.\.)(?!\.$)[-._a-zA-Z][-._a-zA-Z0-9]{0,252}")
_label = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_namespace = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_subdomain = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_annotation = re.compile(r"[A-Za-z0-9](?:[-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_image = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64}|@[a-z0-9+._-]+:[0-9a-f]{32,})?"
)
_quantity = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([-+]?[0-9]{1,2}))?")
_UNITS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def is_label(name: str) -> bool:
    """Whether a Service can have this name."""
    return len(name) <= _MAX_NAME_LENGTH and _label.fullmatch(name) is not None


def quantity(text: str) -> Decimal | None:
    """The value of a Kubernetes quantity such as "100m" or "1.5Gi"; None for any other text."""
    match = _quantity.fullmatch(text)
    if match is None:
        return None
    number, unit, exponent = match.groups()
    if unit and unit.endswith("i"):
        return Decimal(number) * Decimal(1024) ** ("KMGTPE".index(unit[0]) + 1)
    return Decimal(number).scaleb(int(exponent or 0) + _UNITS.get(unit or "", 0))


def opens_own_port(server: ServerConfig) -> bool:
    """Whether the program opens its port itself in a pod: it gets the number, or does not accept a socket."""
    words = server.command or ()
    if not server.listens or any(placeholders(word, ["{fd}"]) for word in words):
        return False
    if server.binds_itself or server.is_proxied:
        return True
    if "socket" in server.model_fields_set:  # "pool"
        return False
    line = " ".join(words)
    if "PORT" in server.env or re.search(r"\$(PORT\b|\{PORT\b)", line):
        return True
    names = [os.path.basename(word.strip(";&|()")) for word in line.split()]
    while names and _BEFORE_PROGRAM.fullmatch(names[0]):
        del names[0]
    is_shell = bool(names) and _SHELL.fullmatch(names[0])
    return any(map(_OPENS_PORT.fullmatch, names if is_shell else names[:1]))


def cron_schedule(every: str) -> str | None:
    """The schedule of a CronJob for the times of `every`, or None if no schedule has the same times.

    The schedule contains only numbers, ranges and a plain *, because Kubernetes reads other forms differently. In
    crontab(5) a day field that begins with *, such as */2, is unrestricted, so both day fields have to match; in
    Kubernetes it is restricted, and one match suffices. Kubernetes does not accept 7 for Sunday.
    """
    window = parse_window(every)
    hours = {hour: window.minutes >> 60 * hour & _WHOLE_HOUR for hour in range(24)}
    minutes = {minute for minute in range(60) if any(bits >> minute & 1 for bits in hours.values())}
    any_day, any_weekday = len(window.days) == 31, len(window.weekdays) == 7
    days, weekdays = set(window.days), set(window.weekdays)
    if window.either_day and (any_day or any_weekday):
        days, weekdays = set(range(1, 32)), set(range(7))
    elif not (window.either_day or any_day or any_weekday):
        return None
    fields = (
        (minutes, range(60)),
        ({hour for hour, bits in hours.items() if bits}, range(24)),
        (days, range(1, 32)),
        (set(window.months), range(1, 13)),
        (weekdays, range(7)),
    )
    return " ".join(_cron_field(values, every_one) for values, every_one in fields)


def _cron_field(values: set[int], every_one: range) -> str:
    if values == set(every_one):
        return "*"
    texts: list[str] = []
    for number in sorted(values):
        if number - 1 not in values:
            last = next(end for end in range(number, every_one.stop + 1) if end + 1 not in values)
            texts.append(f"{number}-{last}" if last > number else str(number))
    return ",".join(texts)


def secret_keys(table: Table, hidden: Sequence[str]) -> Iterator[Finding]:
    """Problems of keys whose values contain a secret or a value in `hidden`, the environment's values."""
    for key, value in table.items():
        if masked({key: value}, hidden=hidden) != {key: value}:
            fix = "give it to the server in env, or write the value itself if everybody may read it"
            yield Finding((key,), "a value of it is a secret, or comes from the environment", fix)


def settings_problems(settings: Kubernetes, hidden: Sequence[str]) -> Iterator[Finding]:
    """Problems of [kubernetes]: values that the API server or the kubelets refuse, and annotations with secrets.

    `hidden` are the values of environment variables.
    """
    if settings.gateway is not None and settings.ingress_class is not None:
        fix = "write gateway for HTTPRoutes, or ingress_class for Ingresses"
        yield Finding(("kubernetes", "ingress_class"), "routes go through gateway already", fix)
    if settings.ingress_tls is not None and settings.ingress_class is None:
        fix = "write ingress_class, too; the certificates of a Gateway are those of its listeners"
        yield Finding(("kubernetes", "ingress_tls"), "there is no Ingress", fix)
    if settings.gateway is not None:
        *namespaces, gateway = settings.gateway.split("/")
        if (
            len(namespaces) > 1
            or not _subdomain.fullmatch(gateway)
            or not all(map(_namespace.fullmatch, namespaces))
        ):
            fix = 'write its name, or "NAMESPACE/NAME"'
            yield Finding(("kubernetes", "gateway"), f"no Gateway can be named {settings.gateway!r}", fix)
    for key, kind, names in (
        ("ingress_class", "IngressClass", [settings.ingress_class]),
        ("ingress_tls", "Secret", [settings.ingress_tls]),
        ("service_account", "ServiceAccount", [settings.service_account]),
        ("secrets", "Secret", settings.secrets),
        ("pull_secrets", "Secret", settings.pull_secrets),
    ):
        for name in names:
            if name is not None and not _subdomain.fullmatch(name):
                fix = f"kubectl get {kind.lower()} lists them"
                yield Finding(("kubernetes", key), f"no {kind} can be named {name!r}", fix)
    if settings.namespace is not None and not _namespace.fullmatch(settings.namespace):
        fix = "use lower-case letters, digits and hyphens, 63 at most"
        message = f"no namespace can be named {settings.namespace!r}"
        yield Finding(("kubernetes", "namespace"), message, fix)
    if settings.image is not None and not _image.fullmatch(settings.image):
        yield Finding(("kubernetes", "image"), *_no_image(settings.image))
    if not settings.directory.startswith("/"):
        yield Finding(("kubernetes", "directory"), "it is in the image", f'write "/{settings.directory}"')
    for key, value in settings.requests:
        if value is not None and (quantity(value) is None or (key == "memory" and value[-1] in "num")):
            fix = (
                'write a number such as "100m" or "2"'
                if key == "cpu"
                else 'write bytes such as "128M" or "1Gi"'
            )
            yield Finding(("kubernetes", "requests", key), f"{value!r} is not a Kubernetes quantity", fix)
    for name, value in settings.annotations.items():
        if masked_text(value, hidden) != value:
            fix = "write the value itself if everybody may read it"
            message = "it is a secret, or comes from the environment"
            yield Finding(("kubernetes", "annotations", name), message, fix)
        if name == WAVE:
            fix = "remove it; the waves rise along depends_on"
            yield Finding(("kubernetes", "annotations", name), "it would be one wave for all servers", fix)
        domain, slash, rest = name.rpartition("/")
        if not _annotation.fullmatch(rest) or (slash and not _subdomain.fullmatch(domain)):
            fix = "write NAME or DOMAIN/NAME, the name with at most 63 letters, digits and -._"
            yield Finding(("kubernetes", "annotations", name), "no object has such an annotation", fix)


def _no_image(image: str) -> tuple[str, str]:
    return f"no image can be named {image!r}", 'write image = "registry.example.com/shop:1.4"'


def ignored_keys(
    server: ServerConfig, origin: Iterable[str], *, is_routed: bool = False
) -> Iterator[Finding]:
    """The server's keys that are ignored on Kubernetes; with `is_routed`, labels for routes are not among them.

    `origin` has the keys that files set.
    """
    in_files = {key.partition(".")[0] for key in origin}
    for key, reason in IGNORED.items():
        routing = is_routed and key == "labels" and all(name.startswith("route.") for name in server.labels)
        is_equal = key == "restart" and (
            server.every is None
            if server.job
            else server.restart_policy == "always" and server.restart.model_fields_set == {"policy"}
        )
        if key in in_files and getattr(server, key) and not (routing or is_equal):
            yield Finding((key,), reason)


def probe_keys_left_out(server: ServerConfig) -> Iterator[Finding]:
    """The keys of the server's probes that are ignored in a pod."""
    for kind in PROBES if not server.job else ():
        probe: Probe | None = getattr(server.health, kind)
        if probe is None:
            continue
        path = ("health", kind)
        keys = [*_NOT_IN_PODS, *(["rise_count_ko"] if kind != "readiness" else [])]
        if server.command:
            keys += ["method", "status", "body"]
        for key in keys:
            if getattr(probe, key) != Probe.model_fields[key].default:
                yield Finding((*path, key), "a probe of a pod has no equal")
        if not server.command and not (probe.http or probe.tcp):
            yield Finding(path, "in the pod of an app, its event loop has to answer instead")


def variable_problems(server: ServerConfig, names: Iterable[str]) -> Iterator[Finding]:
    """Problems of variables of the server's env files that no Secret can hold."""
    for name in names:
        if name not in server.env and not _variable.fullmatch(name):
            yield Finding(("env_file",), f"no Secret can hold the variable {name!r}", _FIX_OF_VARIABLE)


def unsupported_keys(server: ServerConfig) -> Iterator[Finding]:
    """Unsupported names and keys of a server."""
    for key, (is_used, reason, fix) in UNSUPPORTED.items():
        if is_used(getattr(server, key)):
            yield Finding((key,), reason, fix)
    if not is_label(server.name):
        fix = "use lower-case letters, digits and hyphens, 63 at most, a letter first"
        yield Finding(("name",), f"no Service can be named {server.name!r}", fix)
    if server.image is not None and not _image.fullmatch(server.image):
        yield Finding(("image",), *_no_image(server.image))
    for name in server.env:
        if not _variable.fullmatch(name):
            yield Finding(("env", name), "no Secret can hold a variable of this name", _FIX_OF_VARIABLE)
    if server.every is not None and cron_schedule(server.every) is None:
        fix = "restrict the day of the month or the weekday alone"
        yield Finding(("every",), "no CronJob runs on days that match both restrictions", fix)
    address = server.address
    if address.kind in ("unix", "fd"):
        yield Finding(("bind",), "a pod is reached by a port", 'write bind = ":8000"')
    elif address.auto:
        yield Finding(("bind",), "its port is chosen when it starts", 'give it a port: bind = ":8000"')
    if server.scale.min == 0:
        yield Finding(("scale", "min"), "nothing wakes a server on a cluster", "write min = 1")
    triggers = getattr(server.scale, "triggers", None)  # from the scaling feature, if it is installed
    for name in () if triggers is None else sorted(triggers.targets.keys() - {"cpu"}):
        fix = "use triggers.cpu, or a fixed number of workers"
        yield Finding(("scale", "triggers", name), "the cluster measures processor time alone", fix)
