"""The files of an export: their names, what a second export changes, `--check`, and where secrets are."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.configuration import server
from tests.needs import needs

POOL = '[pool]\nname = "shop"\n[kubernetes]\nimage = "registry.example.com/shop:1.4"\n'
Write = Callable[..., None]


def app(name: str, port: int, **keys: Any) -> str:
    return server(name, bind=f"127.0.0.1:{port}", app="shop:app", **keys)


@pytest.fixture
def write(directory: Path) -> Write:
    """`write(*tables, pool=POOL)`: writes pool.toml."""

    def written(*tables: str, pool: str = POOL) -> None:
        (directory / "pool.toml").write_text(pool + "\n".join(tables))

    return written


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_names_stay_whatever_a_server_and_its_neighbours_are_called(
    write: Write, poolctl: Any, directory: Path
) -> None:
    route = '[[route]]\nhost = "shop.test"\nto = "routes"\n'
    pool = POOL + 'ingress_class = "nginx"\n'
    write(app("routes", 8000), app("kustomization", 8001), route, pool=pool)
    assert poolctl("export", "kubernetes", "--directory", "made").code == 0
    before = texts(directory / "made")
    assert sorted(before) == [
        "kustomization.yaml",
        "routes.yaml",
        "server-kustomization.yaml",
        "server-routes.yaml",
    ]
    write(app("first", 8002), app("kustomization", 8001), app("routes", 8000), route, pool=pool)
    assert poolctl("export", "kubernetes", "--directory", "made").code == 0
    after = texts(directory / "made")
    assert after.keys() - before.keys() == {"server-first.yaml"}
    assert {name for name in before if before[name] != after[name]} == {"kustomization.yaml"}


def test_second_export_removes_what_is_of_this_pool_alone(
    write: Write, poolctl: Any, directory: Path
) -> None:
    write(app("web", 8000), app("mail", 8001))
    made = directory / "made"
    assert poolctl("export", "kubernetes", "--directory", "made").code == 0
    (made / "own.yaml").write_text("# Made by hand\n")
    other = (made / "server-mail.yaml").read_text().replace("for the pool shop.", "for the pool shop-2.")
    (made / "server-other.yaml").write_text(other)
    write(app("web", 8000))
    done = poolctl("export", "kubernetes", "--directory", "made")
    assert "removed made/server-mail.yaml" in done.out
    assert sorted(texts(made)) == ["kustomization.yaml", "own.yaml", "server-other.yaml", "server-web.yaml"]
    (made / "server-web.yaml").write_text(other)
    done = poolctl("export", "kubernetes", "--directory", "made")
    assert (done.code, "made/server-web.yaml was not made by this export" in done.err) == (8, True)
    assert (made / "server-web.yaml").read_text() == other


@pytest.mark.parametrize("name", ["kustomization.yaml", "kustomization.yml", "Kustomization"])
def test_kustomization_of_somebody_else_stays(write: Write, poolctl: Any, directory: Path, name: str) -> None:
    write(app("web", 8000))
    made = directory / "made"
    assert poolctl("export", "kubernetes", "--directory", "made").code == 0
    (made / "kustomization.yaml").unlink()
    (made / name).write_text("kind: Kustomization\n")
    done = poolctl("export", "kubernetes", "--directory", "made")
    assert done.code == 0
    assert f"made/{name} is not of this export and stays; its resources need server-web.yaml" in done.err
    assert texts(made).keys() == {name, "server-web.yaml"}
    assert (made / name).read_text() == "kind: Kustomization\n"


@pytest.mark.parametrize("kind", ["directory", "dangling-link", "pipe"])
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("Kustomization", 0, "is not of this export and stays"),
        ("kustomization.yaml", 0, "is not of this export and stays"),
        ("server-web.yaml", 8, "was not made by this export"),
    ],
)
def test_what_is_no_file_is_of_somebody_else(
    write: Write, poolctl: Any, directory: Path, kind: str, name: str, code: int, words: str
) -> None:
    write(app("web", 8000))
    path = directory / "made" / name
    path.parent.mkdir()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    done = poolctl("export", "kubernetes", "--directory", "made")
    assert (done.code, f"made/{name} {words}" in done.err) == (code, True), done.err
    if code:
        done = poolctl("export", "kubernetes", "--directory", "made", "--check")
        assert (done.code, f"made/{name} is missing" in done.err) == (1, True), done.err


def test_check_compares_and_changes_nothing(write: Write, poolctl: Any, directory: Path) -> None:
    write(app("web", 8000), app("mail", 8001))
    made = directory / "made"

    def check() -> tuple[int, str]:
        before = {path: path.read_bytes() for path in made.iterdir()} if made.exists() else {}
        done = poolctl("export", "kubernetes", "--directory", "made", "--check")
        assert {path: path.read_bytes() for path in made.iterdir()} == before if before else not made.exists()
        return done.code, done.err

    assert check()[0] == 1
    assert poolctl("export", "kubernetes", "--directory", "made").code == 0
    assert check() == (0, "")
    (made / "server-web.yaml").chmod(0o600)  # git knows no modes but these
    assert check() == (0, "")
    (made / "server-web.yaml").write_text((made / "server-web.yaml").read_text().replace("1.4", "1.3"))
    code, told = check()
    assert (code, "made/server-web.yaml differs" in told) == (1, True)
    (made / "server-web.yaml").unlink()
    assert "made/server-web.yaml is missing" in check()[1]
    write(app("web", 8000))
    assert poolctl("export", "kubernetes", "--check").code == 2
    code, told = check()
    assert (code, "made/server-mail.yaml is of a former export" in told) == (1, True)


def test_stream_has_no_kustomization(write: Write, poolctl: Any) -> None:
    write(app("web", 8000, depends_on=["users"]), app("users", 8001))
    objects = [each for each in yaml.safe_load_all(poolctl("export", "kubernetes").out) if each]
    deployed = [each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"]
    assert deployed == ["shop-users", "shop-web"]
    assert all(each["kind"] != "Kustomization" for each in objects)


def test_file_with_values_is_private_and_becomes_so_again(
    write: Write, poolctl: Any, directory: Path
) -> None:
    write(app("web", 8000, env={"WORD": "one"}), app("mail", 8001))
    made = directory / "made"
    assert poolctl("export", "kubernetes", "--directory", "made").code == 0
    assert mode(made / "server-web.yaml") == 0o600
    assert mode(made / "server-mail.yaml") & 0o044
    (made / "server-web.yaml").chmod(0o644)
    assert poolctl("export", "kubernetes", "--directory", "made").code == 0
    assert mode(made / "server-web.yaml") == 0o600


def test_secrets_by_reference_need_no_values(
    write: Write, poolctl: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "token-of-the-shell")
    monkeypatch.delenv("UNSET", raising=False)
    (directory / "web.env").write_text("PASSWORD=swordfish\n")
    env = {
        "TOKEN": "Bearer ${SHOP_TOKEN}", "UNSET": "${UNSET}", "REGION": "$(eu) west", "PRICE": 'a "$5"${UNSET}',
        "API_KEY": "literal-key", "DB_PASS": "literal-key", "LEVEL": "${LEVEL:-info}",
    }  # fmt: skip
    write(app("web", 8000, env=env, env_file="web.env"), pool=POOL + 'namespace = "shop"\n')
    done = poolctl("export", "kubernetes", "--directory", "made", "--secrets", "reference")
    assert done.code == 0, done.err
    (line,) = (line for line in done.err.splitlines() if "create secret" in line)
    assert line.endswith(
        "kubectl -n shop create secret generic shop-web"
        ' --from-literal=API_KEY="${API_KEY:?}" --from-literal=DB_PASS="${DB_PASS:?}"'
        ' --from-literal=LEVEL="${LEVEL:-info}" --from-literal=PASSWORD="${PASSWORD:?}"'
        ' --from-literal=PRICE="a \\"\\$5\\"${UNSET:?}"'
        ' --from-literal=TOKEN="Bearer ${SHOP_TOKEN:?}" --from-literal=UNSET="${UNSET:?}"'
    )
    text = "".join(texts(directory / "made").values())
    for value in ("swordfish", "token-of-the-shell", "literal-key"):
        assert value not in text + done.err
        assert base64.b64encode(value.encode()).decode() not in text
    assert "kind: Secret\n" not in text
    assert "name: shop-web\n" in text
    found = container(poolctl("export", "kubernetes", "--secrets", "reference"))
    readable = [{"name": "REGION", "value": "$$(eu) west"}]
    assert found["env"] == readable, "what is in the file, and needs no Secret"
    monkeypatch.setenv("SHOP_TOKEN", "another-token")
    monkeypatch.setenv("UNSET", "set")
    monkeypatch.setenv("LEVEL", "debug-of-the-shell")
    assert (
        poolctl("export", "kubernetes", "--directory", "made", "--secrets", "reference", "--check").code == 0
    )


@needs("notify")
@pytest.mark.parametrize(
    "elsewhere",
    [
        {"labels": {"team": "${PLACE}"}},
        {"labels": {"team": "${PLACE:-here}"}},
        {"tags": ["${PLACE:-here}"]},
    ],
)
def test_variable_outside_env_is_a_name_in_env_nevertheless(
    write: Write, poolctl: Any, monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, Any]
) -> None:
    notify = '[[notify]]\ntype = "webhook"\nurl = "https://notify.example.com/${PLACE:-here}"\n'
    env = {"A": "at ${PLACE}", "B": 'in ${PLACE:-Ro "m" $e}', "C": "literal-of-the-file"}
    write(app("web", 8000, env=env, **elsewhere), notify)
    exports = []
    for place in ("first-of-the-shell", "second-of-the-shell"):
        monkeypatch.setenv("PLACE", place)
        done = poolctl("export", "kubernetes", "--secrets", "reference")
        assert (done.code, place in done.out + done.err) == (0, False), done.err
        exports.append((done.out, done.err))
    assert exports[0] == exports[1]
    assert '--from-literal=B="in ${PLACE:-Ro \\"m\\" \\$e}"' in done.err
    assert container(done)["env"] == [{"name": "C", "value": "literal-of-the-file"}]
    monkeypatch.setenv("PLACE", "literal-of-the-file")
    assert "env" not in container(poolctl("export", "kubernetes", "--secrets", "reference"))


def test_secrets_by_reference_need_no_env_file(write: Write, poolctl: Any, directory: Path) -> None:
    (directory / "web.env").write_text("PASSWORD=swordfish\n")
    write(app("web", 8000, env_file="web.env"), app("mail", 8001, env_file="web.env", env={"KEY": "${KEY}"}))
    done = poolctl("export", "kubernetes", "--directory", "made", "--secrets", "reference")
    assert done.code == 0
    assert "create secret generic shop-web --from-env-file=web.env\n" in done.err
    (directory / "web.env").unlink()
    done = poolctl("export", "kubernetes", "--directory", "made", "--secrets", "reference", "--check")
    assert done.code == 0, "in CI, which has no such file"
    assert "create secret generic shop-web --from-env-file=web.env\n" in done.err
    assert (
        'create secret generic shop-mail --from-literal=KEY="${KEY:?}" --from-literal=<each of web.env>\n'
        in done.err
    )
    assert poolctl("export", "kubernetes").code == 5


@pytest.mark.parametrize(
    ("variables", "code", "values"),
    [
        (
            {"APP_SECRET": "swordfish", "FROM_FILE": "set"},
            0,
            ["A=in swordfish", "FROM_FILE=set", "TOKEN=set"],
        ),
        ({"APP_SECRET": "", "FROM_FILE": "set"}, 1, []),
        ({"APP_SECRET": "swordfish"}, 1, []),
        ({"APP_SECRET": "swordfish", "FROM_FILE": "set", "MY": "set", "mail.name": "set"}, 1, []),
    ],
    ids=["all", "empty", "of-a-file", "no-name-of-a-shell"],
)
def test_printed_command_makes_no_empty_value(
    write: Write, poolctl: Any, directory: Path, variables: dict[str, str], code: int, values: list[str]
) -> None:
    names = ["MY-VAR", "mail.name"] if "MY" in variables else []
    (directory / "web.env").write_text("".join(f"{name}=1\n" for name in ("FROM_FILE", *names)))
    env = {"A": "in ${APP_SECRET}", "TOKEN": "${UNSET:-set}"}
    write(app("web", 8000, env=env, env_file="web.env"))
    done = poolctl("export", "kubernetes", "--secrets", "reference")
    (line,) = (line.partition("kubectl ")[2] for line in done.err.splitlines() if "create secret" in line)
    script = f"printf '%s\\n' {line}"
    ran = subprocess.run(["sh", "-c", script], env=variables, cwd=directory, capture_output=True, timeout=60)
    assert (ran.returncode != 0) == bool(code), ran.stderr
    made = [text.removeprefix("--from-literal=") for text in ran.stdout.decode().splitlines()]
    assert [text for text in made if "=" in text] == values


def test_variable_in_a_command_is_not_readable_by_reference_either(
    write: Write, poolctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "word-of-the-shell")
    write(server("it", command=["work", "${WORD}"], env={"A": "${WORD}"}))
    done = poolctl("export", "kubernetes", "--secrets", "reference")
    assert (done.code, "command: a value of it is a secret, or comes from the environment" in done.err) == (
        5,
        True,
    )


def test_secrets_are_of_kubernetes_alone(write: Write, poolctl: Any) -> None:
    write(app("web", 8000))
    assert poolctl("export", "systemd", "--secrets", "reference").code == 2


def container(done: Any) -> dict[str, Any]:
    (found,) = (
        each["spec"]["template"]["spec"]["containers"][0]
        for each in yaml.safe_load_all(done.out)
        if each and each["kind"] == "Deployment"
    )
    assert isinstance(found, dict)
    return found


def secret(done: Any) -> dict[str, str]:
    (found,) = (each for each in yaml.safe_load_all(done.out) if each and each["kind"] == "Secret")
    return {name: base64.b64decode(value).decode() for name, value in found["data"].items()}


def test_env_wins_over_named_secrets_and_these_over_files(
    write: Write, poolctl: Any, directory: Path
) -> None:
    (directory / "web.env").write_text("DATABASE=local\nPORT=1\nHOST=laptop\nPYTHONPATH=lib\n")
    table = server(
        "web", bind="127.0.0.1:8000", command=["serve", "{port}"], env_file="web.env", env={"LEVEL": "info"}
    )
    write(table, pool=POOL + 'secrets = ["shop-database"]\n')
    done = poolctl("export", "kubernetes")
    found = container(done)
    own, named = (each["secretRef"]["name"] for each in found["envFrom"])
    assert named == "shop-database"
    level, host, port = found["env"]
    assert level["valueFrom"]["secretKeyRef"] == {"name": own, "key": "LEVEL"}
    assert [host, port] == [{"name": "HOST", "value": "0.0.0.0"}, {"name": "PORT", "value": "8000"}]
    assert secret(done) == {"DATABASE": "local", "LEVEL": "info", "PYTHONPATH": "/app/lib"}


def test_env_file_that_no_key_names_stays_here(
    write: Write, poolctl: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECRET_KEY", raising=False)
    (directory / ".env").write_text("DATABASE_URL=postgres://laptop\nSECRET_KEY=swordfish\n")
    write(app("web", 8000, env={"KEY": "${SECRET_KEY:-none}"}))
    done = poolctl("export", "kubernetes")
    assert secret(done) == {"KEY": "none"}
    assert ".env stays on this machine: DATABASE_URL, SECRET_KEY; name a Secret" in done.err
    assert "${SECRET_KEY} has its default: .env, which has it, stays on this machine" in done.err
    assert "swordfish" not in done.err + done.out
    write(app("web", 8000, env={"KEY": "${SECRET_KEY}"}))
    done = poolctl("export", "kubernetes")
    assert done.code == 5
    assert "pool.toml:9" in done.err
    assert "write --secrets reference" in done.err
    assert poolctl("export", "kubernetes", "--secrets", "reference").code == 0
    write(app("web", 8000, env_file=".env"))
    done = poolctl("export", "kubernetes")
    assert secret(done)["SECRET_KEY"] == "swordfish"
    assert done.err == ""


TEXTS = [
    "y",
    "No",
    "on",
    "1e3",
    "12e03",
    ".5",
    "0x1f",
    "0o17",
    "017",
    ".inf",
    "<<",
    "=",
    "1_000",
    "12:30",
    "2026-01-01",
    "~",
    "null",
    "é",
    "-",
    "",
]


def test_texts_are_quoted_where_a_reader_could_take_them_for_something_else(
    write: Write, poolctl: Any
) -> None:
    health = {"readiness": {"exec": ["check", *TEXTS]}}
    write(server("y", bind=":8000", command=["serve", "{port}"], health=health))
    done = poolctl("export", "kubernetes")
    assert container(done)["readinessProbe"]["exec"]["command"] == ["check", *TEXTS]
    lines = [line.strip() for line in done.out.splitlines()]
    for text in (each for each in TEXTS if each.isascii()):
        assert f'- "{text}"' in lines
    assert 'poolctl.dev/server: "y"' in lines
    assert done.out.isascii()
