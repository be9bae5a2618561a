"""`poolctl export kubernetes`: what is written, what is refused, and that a pod does what its pool does."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from poolctl.config import ServerConfig
from poolctl.config.model.section import keys_of
from poolctl.features.kubernetes._keys import IGNORED, MAPPED, UNSUPPORTED
from poolctl.features.kubernetes._objects import _WAIT
from tests.configuration import server
from tests.http_get import get
from tests.needs import needs
from tests.real_pool import HELLO_APP, RealPool

from .valid_objects import assert_valid

SHOP = Path(__file__).parent / "shop"
VERSIONS = ("1.32", "1.37")
POOL = '[pool]\nname = "shop"\n[kubernetes]\nimage = "registry.example.com/shop:1.4"\n'
Object = dict[str, Any]


class Exported(list[Object]):
    """The objects of a pool, in the order of application."""

    def of(self, kind: str, name: str) -> Object:
        """The object of this kind for a server."""
        (found,) = (
            each
            for each in self
            if (each["kind"], each["metadata"]["labels"]["poolctl.dev/server"]) == (kind, name)
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
    """`export(*tables, pool=POOL)`: the objects of a pool with these tables, all of them valid."""

    def exported(*tables: str, pool: str = POOL) -> Exported:
        (directory / "pool.toml").write_text(pool + "\n".join(tables))
        done = poolctl("export", "kubernetes", "-o", "json")
        assert done.code == 0, done.err
        texts = [each["text"] for each in done.json["items"]]
        objects = Exported(each for text in texts for each in yaml.safe_load_all(text))
        for each in objects:
            assert_valid(each, *VERSIONS)
        return objects

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
    assert done.out.endswith("next: kubectl apply -f 'its files'\n")
    made = {path.name: path.read_text() for path in (directory / "its files").iterdir()}
    assert made == {path.name: path.read_text() for path in SHOP.glob("*.yaml")}
    assert sorted(made) == ["1-users.yaml", "2-web.yaml", "3-mail.yaml"], "each after what it depends on"
    for text in made.values():
        for each in yaml.safe_load_all(text):
            assert_valid(each, *VERSIONS)


def test_each_key_of_a_server_is_in_one_list() -> None:
    keys = [*keys_of(ServerConfig)]
    assert sorted([*MAPPED, *IGNORED, *UNSUPPORTED]) == sorted(keys)


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
        ("health", {"app": "web:app", "health": BEARER}),
    ],
    ids=["argument", "variable", "header"],
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


@pytest.mark.slow
def test_changed_value_changes_this_server_alone(export: Any) -> None:
    def names(value: str) -> dict[str, list[str]]:
        objects = export(app(env={"KEY": value}), app("other", 8001, env={"KEY": "same"}))
        found: dict[str, list[str]] = {"web": [], "other": []}
        for each in objects:
            metadata = each["metadata"]
            found[metadata["labels"]["poolctl.dev/server"]].append(metadata["name"])
        return found

    before, after = names("one"), names("two")
    assert after["other"] == before["other"]
    changed = [each for each in after["web"] if each not in before["web"]]
    assert len(changed) == 1
    assert changed[0].startswith("shop-web-")
    assert names("one") == before


def test_changed_job_is_another_one(export: Any) -> None:
    def name(value: str) -> str:
        objects = export(server("migrate", command=["migrate"], job=True, env={"TO": value}))
        return str(objects.of("Job", "migrate")["metadata"]["name"])

    assert name("1") == name("1")
    assert name("1") != name("2"), "the API server refuses to change a job"


def test_job_with_a_schedule_is_a_cron_job(export: Any) -> None:
    nightly = {"command": ["backup"], "job": True, "every": "*/30 3 * * sun"}
    objects = export(
        server("backup", **nightly, depends_on=["db"]),
        server("off", **nightly, disabled=True),
        app("db", 8001),
        pool=POOL + 'time_zone = "Europe/Berlin"\n',
    )
    spec = objects.of("CronJob", "backup")["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0,30 3 * * 0", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid", "nothing runs twice at once"
    assert (spec["suspend"], objects.of("CronJob", "off")["spec"]["suspend"]) == (False, True)
    run = spec["jobTemplate"]["spec"]
    assert (run["backoffLimit"], run["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert run["template"]["spec"]["initContainers"][0]["command"][-1] == "db:8001"
    assert spec["jobTemplate"]["metadata"]["labels"] == {
        "poolctl.dev/pool": "shop", "poolctl.dev/server": "backup",
    }  # fmt: skip
    assert (
        "timeZone"
        not in export(server("backup", **nightly), pool=POOL + 'time_zone = ""\n').of("CronJob", "backup")[
            "spec"
        ]
    )


@pytest.mark.slow
@needs("scaling")
def test_server_becomes_what_its_keys_say(export: Any) -> None:
    objects = export(
        app("fixed", 8001, workers=3),
        app("scaled", 8002, scale={"min": 2, "max": 8, "triggers": {"cpu": 0.8}}),
        app("off", 8003, disabled=True),
        app("alone", 8004, overlap=False),
        server("scheduler", command=["schedule"]),
        server("queue", command=["work"], workers=2),
        server("migrate", command=["migrate"], job=True),
        app("limited", 8005, limits={"memory": "200M", "open_files": 4096}),
    )
    specs = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "Deployment"}
    assert specs["shop-fixed"]["replicas"] == 3
    assert "replicas" not in specs["shop-scaled"], "the autoscaler's number stays"
    scaler = objects.of("HorizontalPodAutoscaler", "scaled")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 8)
    assert scaler["metrics"][0]["resource"]["target"] == {"type": "AverageValue", "averageValue": "800m"}
    assert specs["shop-off"]["replicas"] == 0
    rolling = {name: spec["strategy"]["type"] for name, spec in specs.items()}
    once = {name for name, kind in rolling.items() if kind == "Recreate"}
    assert once == {"shop-alone", "shop-scheduler"}, "what must not run twice"
    assert specs["shop-fixed"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert objects.pod("migrate", "Job")["restartPolicy"] == "Never"
    assert not [each for each in objects if each["kind"] == "Service" and each["metadata"]["name"] == "queue"]
    assert objects.container("limited")["resources"] == {"limits": {"memory": "200M"}}
    assert configuration(objects, "limited")["limits"] == {"open_files": 4096}


def configuration(objects: Exported, name: str) -> Object:
    (found,) = json.loads(objects.of("ConfigMap", name)["data"]["pool.json"])["server"]
    assert isinstance(found, dict)
    return found


def test_limits_of_time_become_the_cluster_s(export: Any) -> None:
    health = {
        "readiness": {"http": "/r", "interval": "7s", "timeout": "3s"},
        "liveness": {"http": "/l", "fall_count_ko": 4},
    }
    keys = {"start_timeout": "90s", "drain_timeout": "20s", "stop_timeout": "8s", "health": health}
    settings = POOL + 'stop_delay = "6s"\nnode_lost_after = "1500ms"\n'
    objects = export(app(**keys), pool=settings)
    pod, container = objects.pod("web"), objects.container("web")
    assert pod["terminationGracePeriodSeconds"] == 6 + 20 + 8 + 5
    assert {each["tolerationSeconds"] for each in pod["tolerations"]} == {2}
    first, ready, alive = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    assert first["periodSeconds"] * first["failureThreshold"] == 90
    assert (ready["periodSeconds"], ready["timeoutSeconds"]) == (7, 4)
    assert alive["failureThreshold"] == 5
    assert container["command"][-2:] == ["--stop-delay", "6s"]


def test_app_without_a_probe_is_ready_soon_after_its_start(export: Any) -> None:
    ready = export(app()).container("web")["readinessProbe"]
    assert (ready["periodSeconds"], ready["failureThreshold"]) == (1, 10)


def test_command_is_probed_at_its_port(export: Any) -> None:
    def command(name: str, port: int, **keys: Any) -> str:
        return server(name, bind=f":{port}", command=["serve"], **keys)

    objects = export(
        command("plain", 8001),
        command("http", 8002, health={"liveness": {"http": "/l", "headers": {"X-A": "b"}}}),
        command("program", 8003, health={"readiness": {"exec": ["check", "it"]}}),
    )
    plain = objects.container("plain")
    assert plain["readinessProbe"]["tcpSocket"] == {"port": "http"}
    assert "livenessProbe" not in plain
    assert plain["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    alive = objects.container("http")["livenessProbe"]["httpGet"]
    assert alive == {"path": "/l", "port": "http", "httpHeaders": [{"name": "X-A", "value": "b"}]}
    assert objects.container("program")["readinessProbe"]["exec"]["command"] == ["check", "it"]
    assert objects.container("program")["startupProbe"]["exec"]["command"] == ["check", "it"]


def test_health_address_avoids_the_server_s_port(export: Any) -> None:
    ports = export(app("web", 9000)).container("web")["ports"]
    assert [each["containerPort"] for each in ports] == [9000, 9001]


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
        (POOL.replace("shop", "Shop", 1), "no Deployment can be named 'Shop-web'"),
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


def test_init_container_waits_until_each_place_accepts(free_port: Any, until: Any) -> None:
    ports = [free_port(), free_port()]
    waiting = subprocess.Popen([sys.executable, "-c", _WAIT, *(f"127.0.0.1:{port}" for port in ports)])
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
