"""`poolctl export kubernetes`: what is written, what is refused, and that a pod does what its pool does."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from poolctl.config import ServerConfig, load, with_resolved_references
from poolctl.config.model.section import keys_of
from poolctl.features.kubernetes._keys import IGNORED, MAPPED, UNSUPPORTED
from poolctl.features.kubernetes._objects import WAIT_PROGRAM
from tests.configuration import server
from tests.http_get import get
from tests.needs import needs
from tests.real_pool import HELLO_APP, RealPool

SHOP = Path(__file__).parent / "shop"
POOL = '[pool]\nname = "shop"\n[kubernetes]\nimage = "registry.example.com/shop:1.4"\n'
Object = dict[str, Any]
SERVER = "poolctl.dev/server"


class Exported(list[Object]):
    """The objects of a pool, in the order of application."""

    def of(self, kind: str, name: str) -> Object:
        """The object of this kind for a server."""
        (found,) = (
            each for each in self if (each["kind"], each["metadata"]["labels"].get(SERVER)) == (kind, name)
        )
        return found

    def pod(self, name: str, kind: str = "Deployment") -> Object:
        found: Object = self.of(kind, name)["spec"]["template"]["spec"]
        return found

    def container(self, name: str, kind: str = "Deployment") -> Object:
        (found,) = self.pod(name, kind)["containers"]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def export(poolctl: Any, directory: Path) -> Any:
    """`export(*tables, pool=POOL)`: the objects of a pool with these tables."""

    def exported(*tables: str, pool: str = POOL) -> Exported:
        (directory / "pool.toml").write_text(pool + "\n".join(tables))
        done = poolctl("export", "kubernetes", "-o", "json")
        assert done.code == 0, done.err
        texts = [each["text"] for each in done.json["items"]]
        return Exported(each for text in texts for each in yaml.safe_load_all(text))

    return exported


def app(name: str = "web", port: int = 8000, **keys: Any) -> str:
    return server(name, bind=f"127.0.0.1:{port}", app=f"{name}:app", **keys)


def test_image_of_a_server_wins(export: Any) -> None:
    objects = export(app("web", 8001, image="web:2"), app("users", 8002, depends_on=["web"]))
    assert [objects.container(name)["image"] for name in ("web", "users")] == [
        "web:2",
        "registry.example.com/shop:1.4",
    ]
    without = '[pool]\nname = "shop"\n[kubernetes]\n'
    assert export(app("web", 8001, image="web:2"), pool=without).container("web")["image"] == "web:2"


def test_files_are_those_of_the_example(poolctl: Any, directory: Path) -> None:
    """After a change of the objects: run `poolctl export kubernetes --directory .` in the directory `shop`."""
    shutil.copy(SHOP / "pool.toml", directory)
    done = poolctl("export", "kubernetes", "--directory", "its files")
    assert done.code == 0, done.err
    assert done.out.endswith("next: kubectl apply -k 'its files'\n")
    made = {path.name: path.read_text() for path in (directory / "its files").iterdir()}
    assert made == {path.name: path.read_text() for path in SHOP.glob("*.yaml")}
    assert sorted(made) == ["kustomization.yaml", "server-mail.yaml", "server-users.yaml", "server-web.yaml"]
    assert yaml.safe_load(made.pop("kustomization.yaml"))["resources"] == sorted(made)


def test_each_key_of_a_server_is_in_one_list() -> None:
    listed = Counter([*MAPPED, *IGNORED, *UNSUPPORTED])
    listed.subtract(keys_of(ServerConfig))
    assert {key for key, count in listed.items() if count} == set(), "the lists in kubernetes/_keys.py"


def test_pod_has_no_rights(export: Any) -> None:
    objects = export(app(), app("other", 8001, depends_on=["web"]), server("it", command=["true"]))
    for name in ("web", "other", "it"):
        pod = objects.pod(name)
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_values_of_the_environment_are_in_the_secret_alone(
    export: Any, poolctl: Any, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setenv("DATABASE", "postgres-password-9")
    (directory / "more.env").write_text("FROM_FILE=file-password-8\n")
    env = {"PLAIN": "given-password-7", "DATABASE": "${DATABASE}"}
    objects = export(app(env=env, env_file="more.env"))
    secret = {
        name: base64.b64decode(value).decode() for name, value in objects.of("Secret", "web")["data"].items()
    }
    assert secret == {
        "PLAIN": "given-password-7", "DATABASE": "postgres-password-9", "FROM_FILE": "file-password-8",
    }  # fmt: skip
    others = json.dumps([each for each in objects if each["kind"] != "Secret"])
    told = poolctl("-v", "export", "kubernetes", "--directory", "made").err
    for value in secret.values():
        assert value not in others + told
    reference = {"secretRef": {"name": objects.of("Secret", "web")["metadata"]["name"]}}
    assert objects.container("web")["envFrom"] == [reference]


def test_pool_of_a_directory_is_exported_without_its_secrets(
    poolctl: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "very-secret-token")
    (directory / "all").mkdir()
    (directory / "all" / "pool.toml").write_text(POOL)
    (directory / "all" / "web.toml").write_text(app(env={"LEVEL": "info"}))
    assert poolctl("-c", "all", "export", "kubernetes").code == 0
    (directory / "all" / "web.toml").write_text(server("web", bind=":8000", command=["serve", "${TOKEN}"]))
    done = poolctl("-c", "all", "export", "kubernetes")
    assert (done.code, "very-secret-token" in done.err) == (5, False)


BEARER = {"readiness": {"http": "/", "headers": {"Authorization": "Bearer abcdefgh"}}}


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("command", {"command": ["serve", "--token", "given"]}),
        ("command", {"command": ["serve", "${TOKEN}"]}),
        ("command", {"command": ["serve", "${TOKEN:-none}"]}),
        ("health", {"app": "web:app", "health": BEARER}),
        ("health", {"command": ["serve", "{port}"], "health": BEARER}),
    ],
    ids=["argument", "variable", "default", "header", "header-of-a-command"],
)
def test_secret_that_everybody_could_read_is_refused(
    poolctl: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, key: str, keys: Any
) -> None:
    monkeypatch.setenv("TOKEN", "very-secret-token")
    table = server("web", bind=":8000", **keys)
    (directory / "pool.toml").write_text(POOL + table)
    done = poolctl("export", "kubernetes")
    assert done.code == 5
    assert f"{key}: a value of it is a secret" in done.err
    assert "very-secret-token" not in done.err + done.out


@pytest.mark.parametrize("value", ["of ${TOKEN}", "${TOKEN:-none}", "https://me:pass@example.com/"])
def test_secret_in_an_annotation_is_refused(
    export: Any, poolctl: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TOKEN", "very-secret-token")
    (directory / "pool.toml").write_text(f'{POOL}annotations = {{ "a.b/c" = "{value}" }}\n{app()}')
    done = poolctl("export", "kubernetes")
    assert (done.code, "very-secret-token" in done.err) == (5, False)
    assert "pool.toml:5:" in done.err
    assert "annotations.a.b/c: it is a secret, or comes from the environment" in done.err
    monkeypatch.setenv("TOKEN", "name-in-the-file")  # as the default
    name = '"a.b/auth-secret" = "shop-users", "a.b/d" = "${TOKEN:-name-in-the-file}"'
    export(app(), pool=f"{POOL}annotations = {{ {name} }}\n")


def test_what_pods_of_an_earlier_revision_need_is_not_pruned_before_they_go(export: Any) -> None:
    kept = {
        "argocd.argoproj.io/sync-options": "PruneLast=true",
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
    }
    for each in export(app(env={"A": "b"})):
        annotations = each["metadata"].get("annotations", {})
        assert annotations == (kept if each["kind"] in ("ConfigMap", "Secret") else {})


def test_changed_job_is_another_one(export: Any) -> None:
    def name(value: str) -> str:
        objects = export(server("migrate", command=["migrate"], job=True, env={"TO": value}))
        return str(objects.of("Job", "migrate")["metadata"]["name"])

    assert name("1") == name("1")
    assert name("1") != name("2"), "the API server refuses to change a job"
    annotated = POOL + 'annotations = { "a.b/c" = "d" }\n'
    objects = export(server("migrate", command=["migrate"], job=True, env={"TO": "1"}), pool=annotated)
    assert objects.of("Job", "migrate")["metadata"]["name"] != name("1"), "nor its template's annotations"


NIGHTLY: dict[str, Any] = {
    "bind": None, "app": None, "command": ["backup"], "job": True, "every": "0 3 * * mon",
}  # fmt: skip
REFUSALS: list[Any] = [
    ({"bind": "unix:/tmp/a.sock"}, "bind: a pod is reached by a port"),
    ({"bind": "fd:web"}, "bind: a pod is reached by a port"),
    ({"bind": "127.0.0.1:auto"}, "bind: its port is chosen when it starts"),
    ({"name": "Web_1"}, "name: no Service can be named"),
    ({"scale": {"min": 0, "idle": "5m"}}, "scale.min: nothing wakes a server"),
    pytest.param(
        {"scale": {"max": 3, "triggers": {"queue": 3}}}, "scale.triggers.queue: the cluster measures",
        marks=needs("scaling"),
    ),
    (NIGHTLY | {"every": "0 3 */2 * mon"}, "every: no CronJob runs on days that match both"),
    (NIGHTLY | {"name": "n" * 48}, "name: no CronJob can be named 'shop-nnn"),
    ({"env": {"A B": "c"}}, "env.A B: no Secret can hold a variable of this name"),
    ({"hooks": {"before_start": ["migrate"]}}, "hooks: hooks run once"),
    ({"tls": {"cert": "a.pem"}}, "tls: certificates are files of this machine"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "words"), REFUSALS, ids=lambda each: each if isinstance(each, str) else "")
def test_server_that_no_pod_can_be_is_refused_at_its_place(
    poolctl: Any, directory: Path, keys: dict[str, Any], words: str
) -> None:
    keys = {"name": "web", "bind": "127.0.0.1:8000", "app": "web:app"} | keys
    table = server(**{key: value for key, value in keys.items() if value is not None})
    (directory / "pool.toml").write_text(POOL + table + "\n" + app("fine", 8009))
    done = poolctl("export", "kubernetes")
    assert done.code == 5, done.err
    assert words in done.err
    assert "pool.toml:" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("", "the pool has no table [kubernetes]"),
        ("[kubernetes]\n", "the pods have no image"),
        (POOL.replace("shop", "Shop", 1), "pool.name: no label can have the value 'Shop'"),
        (POOL.replace("shop", "shop-", 1), "pool.name: no label can have the value 'shop-'"),
    ],
)
def test_pool_without_what_pods_need_is_refused(poolctl: Any, directory: Path, pool: str, words: str) -> None:
    (directory / "pool.toml").write_text(pool + app())
    done = poolctl("export", "kubernetes")
    assert (done.code, words in done.err) == (5, True), done.err


def test_what_is_left_out_is_said(poolctl: Any, directory: Path) -> None:
    tables = (
        app(preload=True, mandatory=True, recovery={"strategy": "notify"}, depends_on=["first"]),
        server("first", command=["work"]),
        '[metrics]\nbind = "127.0.0.1:9464"\n',
    )
    (directory / "pool.toml").write_text(POOL + "\n".join(tables))
    told = poolctl("export", "kubernetes").err
    for words in (
        "preload: each pod imports",
        "mandatory: the other servers",
        "recovery: Kubernetes restarts",
        "web does not wait for first, which has no port",
        "[metrics] is not exported",
    ):
        assert words in told


def test_nothing_is_told_of_what_no_file_has_or_a_pod_does_anyway(poolctl: Any, directory: Path) -> None:
    def told(**keys: Any) -> str:
        (directory / "pool.toml").write_text(POOL + app(**keys))
        return str(poolctl("export", "kubernetes").err)

    assert told(expose="https://shop.example.com", restart="always") == ""
    assert "restart: Kubernetes restarts a worker always" in told(restart={"policy": "always", "limit": 3})
    assert "restart: Kubernetes restarts a worker always" in told(restart="no")


@pytest.mark.parametrize(
    ("keys", "warns"),
    [
        ({}, True),
        ({"health": {"readiness": {"tcp": True}}}, True),
        ({"health": "/check"}, False),
        ({"health": {"startup": {"exec": ["true"]}}}, False),
        ({"socket": "program"}, False),
        ({"job": True, "bind": ""}, False),
    ],
)
def test_port_that_is_open_before_its_program_runs_needs_a_probe(
    keys: dict[str, Any], warns: bool, poolctl: Any, directory: Path
) -> None:
    keys = {"command": ["gunicorn", "shop:app"], "bind": "127.0.0.1:8000"} | keys
    (directory / "pool.toml").write_text(POOL + server("web", **{k: v for k, v in keys.items() if v}))
    assert ("pods are ready before the program" in poolctl("export", "kubernetes").err) is warns


def test_init_container_waits_until_each_place_accepts(free_port: Any, until: Any) -> None:
    ports = [free_port(), free_port()]
    waiting = subprocess.Popen([sys.executable, "-c", WAIT_PROGRAM, *(f"127.0.0.1:{port}" for port in ports)])
    try:
        with socket.create_server(("127.0.0.1", ports[0])) as first:
            first.settimeout(60)
            first.accept()[0].close()
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
            with socket.create_server(("127.0.0.1", ports[1])):
                assert waiting.wait(60) == 0
    finally:
        waiting.kill()
        waiting.wait()


@pytest.fixture
def image(real_pool: RealPool) -> Path:
    """A directory that stands for the root of the image: the applications are in its /app."""
    directory = real_pool.directory / "app"
    directory.mkdir()
    (directory / "hello.py").write_text(
        HELLO_APP.replace('b"hello from "', '__import__("os").environb[b"WORD"]')
    )
    return directory


@pytest.mark.integration
@pytest.mark.capability
@needs("serve")
def test_pod_serves_as_its_server_does(real_pool: RealPool, image: Path, until: Any, free_port: Any) -> None:
    port, health = free_port(), free_port()
    settings = f'[pool]\nname = "shop"\n[kubernetes]\nimage = "it"\ndirectory = "{image}"\n'
    table = server("web", bind=f"127.0.0.1:{port}", app="hello:app", health="/check", env={"WORD": "word"})
    real_pool.write("pool.toml", settings + table)
    done = real_pool.ok("export", "kubernetes", "-o", "json")
    objects = Exported(yaml.safe_load_all(done.json["items"][0]["text"]))
    container = objects.container("web")
    data = objects.of("Secret", "web")["data"]
    variables = {name: base64.b64decode(value).decode() for name, value in data.items()}
    mounted = real_pool.write("pool.json", objects.of("ConfigMap", "web")["data"]["pool.json"])
    command = [
        {"/etc/poolctl/pool.json": str(mounted), "0.0.0.0:9000": f"127.0.0.1:{health}", "5s": "0s"}.get(
            word, word
        )
        for word in container["command"]
    ]
    assert command[0] == "poolctl"
    pod = real_pool.spawn(*command[1:], env=variables)

    def is_ready() -> bool:
        try:
            return get(health, container["readinessProbe"]["httpGet"]["path"]).status == 200
        except ConnectionRefusedError:
            return False

    until(is_ready)
    assert get(port).text == f"word{port}"
    pod.terminate()
    assert pod.wait(60) == 0


def in_pod(objects: Exported, name: str, directory: Path) -> ServerConfig:
    """The server that `poolctl serve` reads in the pod. Its file has no problem."""
    path = directory / f"pod-{name}.json"
    (config,) = (
        each
        for each in objects
        if each["kind"] == "ConfigMap" and each["metadata"]["labels"].get(SERVER) == name
    )
    path.write_text(config["data"]["pool.json"])
    found = load(str(path), {"PORT": "of the container"})
    assert [str(each) for each in found.problems] == []
    (only,) = with_resolved_references(found)
    return only


@pytest.mark.parametrize(
    "probe",
    [{"exec": ["true"]}, {"tcp": True}, {"http": "/", "headers": {"X": "1"}, "status": "200", "body": "ok"}],
)
@pytest.mark.parametrize("serves", [{"app": "a:b"}, {"command": ["serve", "{port}"]}])
def test_pod_reads_the_file_that_it_is_given(
    export: Any, directory: Path, probe: Any, serves: dict[str, Any]
) -> None:
    health = dict.fromkeys(("startup", "readiness", "liveness"), probe)
    found = in_pod(export(server("web", bind=":8000", health=health, **serves)), "web", directory)
    assert (found.health.readiness is not None) == ("app" in serves and "http" in probe)


def test_texts_arrive_in_the_pod_as_they_are(export: Any, directory: Path) -> None:
    command = ["sh", "-c", "$${HOME} $$${X} $${server.web.url} $(HOME) {other}", "${server.unix.url}"]
    objects = export(server("fd", bind=":8000", command=command), server("unix", bind=":8001", app="a:b"))
    assert in_pod(objects, "fd", directory).command == (
        "sh", "-c", "${HOME} $${X} ${server.web.url} $(HOME) {other}", "http://unix:8001",
    )  # fmt: skip
    assert in_pod(objects, "unix", directory).expose == "http://unix:8001"


def test_port_below_1024_can_be_opened(export: Any) -> None:
    objects = export(app("web", 80), app("users", 1024))
    sysctl = {"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}
    assert objects.pod("web")["securityContext"]["sysctls"] == [sysctl]
    assert "sysctls" not in objects.pod("users")["securityContext"]


@pytest.mark.parametrize(
    ("keys", "opens"),
    [
        ({"command": ["node", "server.js"]}, True),
        ({"command": ["/usr/bin/java", "-jar", "a.jar"]}, True),
        ({"command": ["env", "A=b", "php8.2", "-S", "0.0.0.0:8000"]}, True),
        ({"command": ["tini", "-g", "--", "nice", "-n", "5", "node", "server.js"]}, True),
        ({"command": ["sh", "-c", "cd web && exec npm start"]}, True),
        ({"command": ["sh", "-c", "exec ./serve --port $PORT"]}, True),
        ({"command": ["sh", "-c", "exec ./serve --port $${PORT:-80}"]}, True),
        ({"command": ["./serve"], "env": {"PORT": "8000"}}, True),
        ({"command": ["./serve"], "env": {"LISTEN": "{host}:{port}"}, "workers": 2}, True),
        ({"command": ["./serve", "{bind}"], "workers": 3}, True),
        ({"command": ["./serve"], "socket": "program"}, True),
        ({"command": ["./serve"], "socket": "proxied", "workers": 2}, True),
        ({"command": ["./serve"]}, False),
        ({"command": ["gunicorn", "node.app:app"]}, False),
        ({"command": ["node", "server.js", "{fd}"]}, False),
        ({"command": ["node", "server.js"], "socket": "pool"}, False),
        ({"command": ["./serve"], "socket": "pool", "env": {"PORT": "8000"}}, False),
        ({"command": ["sh", "-c", "echo $PORTAL"]}, False),
    ],
)
def test_program_opens_its_port_itself_if_it_is_told_or_known_to(
    poolctl: Any, export: Any, directory: Path, keys: dict[str, Any], opens: bool
) -> None:
    found = in_pod(export(server("web", bind="127.0.0.1:8000", health="/check", **keys)), "web", directory)
    assert (found.socket, found.bind) == ("program" if opens else "pool", "0.0.0.0:8000")
    assert poolctl("export", "kubernetes").err == "", "no advice that is for one machine"


def test_port_of_env_is_that_of_the_container(
    poolctl: Any, export: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "8000-of-the-environment")
    table = server("web", bind=":8000", command=["./serve"], env={"PORT": "${PORT}"})
    objects = export(table)
    assert "8000-of-the-environment" not in json.dumps(objects), "it is in the Secret, encoded"
    assert in_pod(objects, "web", directory).env == {"PORT": "of the container"}
    (source,) = objects.container("web")["envFrom"]
    assert source["secretRef"]["name"] == objects.of("Secret", "web")["metadata"]["name"]
    assert poolctl("export", "kubernetes", "--secrets", "reference").code == 0


def waves(objects: Exported) -> dict[str, set[str]]:
    """The waves of each server's objects."""
    found: dict[str, set[str]] = {}
    for each in objects:
        wave = each["metadata"].get("annotations", {}).get("argocd.argoproj.io/sync-wave", "0")
        found.setdefault(each["metadata"]["labels"].get(SERVER, "route"), set()).add(wave)
    return found


def test_waves_rise_along_dependencies(export: Any, poolctl: Any) -> None:
    job = {"name": "migrate", "condition": "completed"}
    objects = export(
        app("web", 8000, depends_on=["users", job, "off"], env={"A": "b"}),
        app("users", 8001),
        app("db", 8002),
        app("off", 8003, disabled=True, depends_on=["db"]),
        server("migrate", command=["migrate"], job=True, depends_on=["db"]),
        '[[route]]\nto = "users"\n',
        pool=POOL + 'ingress_class = "nginx"\n',
    )
    assert waves(objects) == {
        "db": {"0"}, "users": {"0"}, "off": {"1"}, "migrate": {"1"}, "web": {"2"}, "route": {"2"},
    }  # fmt: skip
    (waiting,) = objects.pod("web")["initContainers"]
    assert waiting["command"][3:] == ["users:8001"], "a job and a disabled server are not waited for"
    told = poolctl("export", "kubernetes").err
    assert "web does not wait for off, which has no pods" in told
    assert "web comes after the job migrate in waves of Argo CD alone" in told
    job = objects.of("Job", "migrate")["metadata"]["name"]
    wait = f"wait --for condition=complete --timeout 10m job/{job}`"
    assert f"apply its objects and what it needs first, then `kubectl {wait}" in told


def test_job_is_waited_for_by_its_name_in_its_namespace(poolctl: Any, directory: Path) -> None:
    tables = server("migrate", command=["migrate"], job=True) + app(depends_on=["migrate"])
    (directory / "pool.toml").write_text(f'{POOL}namespace = "ours"\n{tables}')
    told = poolctl("export", "kubernetes", "--directory", "my files").err
    made = yaml.safe_load_all((directory / "my files" / "server-migrate.yaml").read_text())
    (job,) = (each["metadata"]["name"] for each in made if each["kind"] == "Job")
    assert "apply 'my files/server-migrate.yaml' and what it needs first" in told
    assert f"`kubectl -n ours wait --for condition=complete --timeout 10m job/{job}`" in told


@needs("scaling")
def test_on_demand_server_runs_where_a_running_one_needs_it(export: Any, poolctl: Any) -> None:
    rests = {"on_demand": True, "scale": {"min": 2, "max": 4, "triggers": {"cpu": 0.5}}}
    jobs: dict[str, Any] = {"command": ["migrate"], "job": True}
    objects = export(
        app("web", 8000, depends_on=["api"]),
        app("api", 8001, on_demand=True, depends_on=["db", "migrate"]),
        server("migrate", **jobs, on_demand=True, depends_on=["db"]),
        app("db", 8002, on_demand=True, workers=2),
        app("alone", 8003, **rests, depends_on=["helper"]),
        app("helper", 8004, on_demand=True),
        app("off", 8005, disabled=True, depends_on=["helper"]),
        server("by-hand", **jobs, on_demand=True),
        server("never", **jobs, disabled=True, env_file="not-there.env"),
    )
    replicas = {
        each["metadata"]["name"]: each["spec"].get("replicas")
        for each in objects
        if each["kind"] == "Deployment"
    }
    assert replicas == {
        "shop-web": 1, "shop-api": 1, "shop-db": 2, "shop-alone": 0, "shop-helper": 0, "shop-off": 0,
    }  # fmt: skip
    assert "suspend" not in objects.of("Job", "migrate")["spec"]
    assert objects.pod("api")["initContainers"][0]["command"][3:] == ["db:8002"]
    servers = {each["metadata"]["labels"][SERVER] for each in objects}
    assert not servers & {"by-hand", "never"}, "Argo CD would wait for a suspended Job for ever"
    assert {each["metadata"]["labels"][SERVER] for each in objects if each["kind"].startswith("Hor")} == set()
    told = poolctl("export", "kubernetes").err
    assert "on_demand: the job is not exported: no server with pods depends on it" in told
    assert "alone does not wait for helper, which has no pods" in told


def test_requests_are_never_above_limits_and_those_of_the_waiting_container_are_small(export: Any) -> None:
    settings = POOL + 'requests = { cpu = "5m", memory = "0.25Gi" }\n'
    objects = export(
        app("web", 8000, depends_on=["db"], limits={"memory": "128MiB"}), app("db", 8001), pool=settings
    )
    limits = {"memory": str(128 * 1024**2)}
    assert objects.container("web")["resources"] == {
        "requests": {"cpu": "5m", "memory": limits["memory"]},
        "limits": limits,
    }
    (waiting,) = objects.pod("web")["initContainers"]
    assert waiting["resources"] == {"requests": {"cpu": "5m", "memory": "32M"}, "limits": limits}
    assert objects.container("db")["resources"] == {"requests": {"cpu": "5m", "memory": "0.25Gi"}}


def test_rollout_has_the_time_of_a_start(export: Any) -> None:
    health = {"startup": {"http": "/loaded", "interval": "20s"}}
    objects = export(app(start_timeout="20m", health=health))
    assert objects.of("Deployment", "web")["spec"]["progressDeadlineSeconds"] > 20 * 60
    probe = objects.container("web")["startupProbe"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (20, 60)


def test_rollout_waits_until_a_program_without_a_port_and_a_probe_has_run_for_a_while(export: Any) -> None:
    health = {"readiness": {"exec": ["true"]}}
    objects = export(
        server("queue", command=["work"], workers=2, ready_after="14m59.5s"),
        server("probed", command=["work"], health=health),
        app("web", 8001),
    )
    specs = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "Deployment"}
    seconds = {name: spec.get("minReadySeconds") for name, spec in specs.items()}
    assert seconds == {"shop-queue": 900, "shop-probed": None, "shop-web": None}
    assert specs["shop-queue"]["progressDeadlineSeconds"] > 900, "the API server refuses any other"


def test_keys_that_nearly_everybody_needs(export: Any) -> None:
    settings = (
        'ingress_class = "nginx"\ningress_tls = "shop-certificate"\npull_secrets = ["registry", "registry"]\n'
        'service_account = "shop"\nannotations = { "prometheus.io/scrape" = "true" }\n'
    )
    objects = export(app(), '[[route]]\nhost = "shop.test"\nto = "web"\n', pool=POOL + settings)
    pod = objects.pod("web")
    assert (pod["imagePullSecrets"], pod["serviceAccountName"]) == ([{"name": "registry"}], "shop")
    assert "automountServiceAccountToken" not in pod
    template = objects.of("Deployment", "web")["spec"]["template"]
    for each in (*objects, template):
        assert each["metadata"]["annotations"].items() >= {"prometheus.io/scrape": "true"}.items()
    (ingress,) = (each for each in objects if each["kind"] == "Ingress")
    assert ingress["spec"]["tls"] == [{"hosts": ["shop.test"], "secretName": "shop-certificate"}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('namespace = "My Shop"', "namespace: no namespace can be named 'My Shop'"),
        ('requests = { cpu = "lots" }', "requests.cpu: 'lots' is not a Kubernetes quantity"),
        ('requests = { memory = "128m" }', "requests.memory: '128m' is not a Kubernetes quantity"),
        ('secrets = ["Shop_Database"]', "secrets: no Secret can be named 'Shop_Database'"),
        ('pull_secrets = ["a_b"]', "pull_secrets: no Secret can be named 'a_b'"),
        ('service_account = "-"', "service_account: no ServiceAccount can be named '-'"),
        ('annotations = { "argocd.argoproj.io/sync-wave" = "7" }', "it would be one wave for all servers"),
        ('annotations = { "a..b/c" = "" }', "annotations.a..b/c: no object has such an annotation"),
        ('annotations = { "a/b/c" = "" }', "annotations.a/b/c: no object has such an annotation"),
        ('ingress_tls = "x"', "ingress_tls: there is no Ingress"),
        ('directory = "app"', 'directory: it is in the image; write "/app"'),
    ],
)
def test_setting_that_the_api_server_refuses_is_refused_at_its_place(
    poolctl: Any, directory: Path, line: str, words: str
) -> None:
    (directory / "pool.toml").write_text(f"{POOL}{line}\n{app()}")
    done = poolctl("export", "kubernetes")
    assert (done.code, "pool.toml:5:" in done.err) == (5, True), done.err
    assert words in done.err


@pytest.mark.parametrize("image", ["My Image", "shop:", "Registry/Shop:1", "shop@sha256:12"])
def test_image_that_no_kubelet_pulls_is_refused(poolctl: Any, directory: Path, image: str) -> None:
    (directory / "pool.toml").write_text(POOL + app(image=image))
    done = poolctl("export", "kubernetes")
    assert (done.code, f"image: no image can be named '{image}'" in done.err) == (5, True), done.err


def test_variable_of_a_file_that_no_secret_holds_is_refused(poolctl: Any, directory: Path) -> None:
    (directory / "web.env").write_text("GOOD=1\napp/mode=production\n")
    (directory / "pool.toml").write_text(POOL + app(env_file="web.env"))
    done = poolctl("export", "kubernetes")
    assert done.code == 5
    assert "env_file: no Secret can hold the variable 'app/mode'" in done.err


def test_keys_of_probes_that_pods_do_not_have_are_told(poolctl: Any, directory: Path) -> None:
    http = {"http": "/", "method": "HEAD", "status": "200", "body": "ok", "interval_fall": "1s"}
    tables = (
        app("web", 8000, health={"readiness": http, "liveness": {"exec": ["true"]}}),
        server("it", bind=":8001", command=["serve", "{port}"], health={"readiness": http}),
    )
    (directory / "pool.toml").write_text(POOL + "\n".join(tables))
    told = [line.partition(": ")[2] for line in poolctl("export", "kubernetes").err.splitlines()]
    keys = sorted(re.findall(r"server\[\d\]\.\S+", "\n".join(told)))
    assert keys == [
        "server[0].health.liveness:",
        "server[0].health.readiness.interval_fall:",
        "server[1].health.readiness.body:",
        "server[1].health.readiness.interval_fall:",
        "server[1].health.readiness.method:",
        "server[1].health.readiness.status:",
    ]


def test_exec_probe_runs_where_the_server_does(export: Any) -> None:
    probe = {"readiness": {"exec": ["check", "{port}", "$(HOST) $$ $PORT"]}}
    table = server("it", bind=":8001", command=["serve", "{port}"], cwd="inside", health=probe)
    container = export(table).container("it")
    assert container["workingDir"] == "/app/inside"
    assert {each["name"]: each["value"] for each in container["env"]} == {
        "HOST": "0.0.0.0", "PORT": "8001", "POOLCTL_NAME": "it", "POOLCTL_BIND": "0.0.0.0:8001",
    }  # fmt: skip
    assert container["readinessProbe"]["exec"]["command"] == ["check", "8001", "$$(HOST) $$$$ $$PORT"]


def test_attempts_of_a_job_are_no_key_without_an_equal(export: Any, poolctl: Any) -> None:
    objects = export(server("migrate", command=["migrate"], job=True, restart={"limit": 3}))
    assert objects.of("Job", "migrate")["spec"]["backoffLimit"] == 3
    assert poolctl("export", "kubernetes").err == ""


def test_index_that_no_pod_of_several_has_is_told(poolctl: Any, directory: Path) -> None:
    shards = ["sh", "-c", "work $POOLCTL_INDEX"]
    (directory / "pool.toml").write_text(POOL + server("one", command=shards))
    assert poolctl("export", "kubernetes").err == ""
    (directory / "pool.toml").write_text(POOL + server("one", command=shards, workers=2))
    assert (
        "server[0].command: POOLCTL_INDEX is not set in pods of several"
        in poolctl("export", "kubernetes").err
    )
