"""What is secret in a configuration."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import ServerConfig
from poolctl.config.files.read_file import variables_named_by_env_keys
from poolctl.config.loader import load
from poolctl.config.model.section import Section
from poolctl.config.values.secrets import MASK, is_secret, masked, masked_file_text
from poolctl.errors import PoolValidateError

FILE = """
[defaults.tls]
cert = "c"
"password_env" = "E"
[[server]]
name = "web"
bind = "127.0.0.1:1"
app = "a:b"
env = { NOT_env = "F" }
tls = { cert = "c", key = "k", password_env = "G" }
"""


def env_keys(model: Any, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name.endswith("_env"):
            yield prefix + name
        annotation = field.annotation
        for inner in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from env_keys(inner, f"{prefix}{name}.")


def test_every_variable_that_an_env_key_names_is_the_pools_own(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(FILE)
    config = load(tmp_path / "pool.toml", {})
    assert not config.problems
    assert sorted(config.secret_variable_names) == ["E", "G"]


def test_no_other_key_of_a_server_names_a_variable() -> None:
    assert set(env_keys(ServerConfig)) <= {"tls.password_env"}


def test_names_are_found_in_the_text_of_files_and_directories(tmp_path: Path) -> None:
    certificates = """tls = [{ cert = "c", password_env = "B" }, { cert = "d", password_env='D' }]\n"""
    (tmp_path / "pool.toml").write_text(FILE + certificates)
    (tmp_path / "more.json").write_text('{"defaults": {"tls": {"cert": "c", "password_env": "J"}}}')
    (tmp_path / "more.yaml").write_text("defaults:\n  tls:\n    password_env: Y\n")
    os.mkfifo(tmp_path / "fifo")
    found = variables_named_by_env_keys(
        [str(tmp_path), str(tmp_path / "no such file"), str(tmp_path / "fifo")]
    )
    assert {"B", "D", "E", "G", "J", "Y"} <= found


@pytest.mark.parametrize(
    "name",
    [
        "PASSWORD", "db_password", "PGPASSWORD", "passwd", "Secret", "CLIENT-SECRET", "api_token", "AWS_CREDENTIALS",
        "API_KEY", "apiKey", "api-key", "private.key", "SSH_PRIVATE_KEY", "Authorization",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["KEY", "PASS", "LEVEL", "tls.key", "PUBLIC_KEY", "api", ""])
def test_other_names(name: str) -> None:
    assert not is_secret(name)


def test_secrets_of_a_configuration_are_masked_and_nothing_else() -> None:
    table = {
        "name": "web", "workers": 2, "disabled": False,
        "env": {"DB_PASSWORD": "x", "DB_PASSWORD_FILE": "y", "URL": "postgres://u:p@ss@h/d?a=b", "LEVEL": "info"},
        "tls": {"cert": "c", "key": "k", "password_env": "P"},
        "health": {"readiness": {"headers": {"Authorization": "Bearer z"}}},
        "command": ["run", "--token", "abc", "-v", "--api-key=def", "--name=web", "redis://:secret@h"],
        "labels": {"token": "l"},
    }  # fmt: skip
    assert masked(table) == {
        "name": "web", "workers": 2, "disabled": False,
        "env": {"DB_PASSWORD": MASK, "DB_PASSWORD_FILE": MASK, "URL": f"postgres://u:{MASK}@h/d?a=b", "LEVEL": "info"},
        "tls": {"cert": "c", "key": "k", "password_env": "P"},
        "health": {"readiness": {"headers": {"Authorization": MASK}}},
        "command": ["run", "--token", MASK, "-v", f"--api-key={MASK}", "--name=web", f"redis://:{MASK}@h"],
        "labels": {"token": MASK},
    }  # fmt: skip
    assert masked(masked(table)) == masked(table)


def test_a_servers_representation_masks_its_arguments() -> None:
    server = ServerConfig(name="a", bind="127.0.0.1:1", command=["x", "--token=abc", "{fd}"])
    assert repr(server) == f"<ServerConfig a 127.0.0.1:1 command=x --token={MASK} {{fd}}>"


FILES = {
    "toml": '[[server]]\nname = "a"\nbind = "127.0.0.1:1"\napp = "a:b"\nenv = { DB_PASSWORD = 31337.5 }\n'
    'http = { root_path = "x://u:hunter2@h" }\nlabels = { token = ["hunter2"] }\n',
    "toml slip": '[[server]]\nname = "a"\nDB_PASSWORD = hunter2\n',
    "json slip": '{"server": [{"name": "a", "password": hunter2}]}',
    "yaml slip": 'server:\n - name: a\n   api_key: "hunter2" more\n',
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_problems_quote_no_secrets(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"pool.{kind.split()[0]}"
    path.write_text(FILES[kind])
    try:
        problems = [str(problem.to_dict()) for problem in load(path, {}).problems]
    except PoolValidateError as error:
        problems = [str(each) for each in error.to_list()]
    assert problems
    assert not any("hunter2" in problem or "31337" in problem for problem in problems)
    if kind != "toml":
        return
    assert any("'DB_PASSWORD'" in problem or "env.DB_PASSWORD" in problem for problem in problems)


def test_long_values_take_no_time() -> None:
    text = f'certificate = "{"x" * 200_000}"\n{"y" * 200_000}'
    begun = time.process_time()
    assert masked_file_text(text) == text
    assert time.process_time() - begun < 2


def test_a_difference_of_files_masks_values_and_keeps_references() -> None:
    text = (
        '+password = "x"\n env = { DB_TOKEN = "a b", LEVEL = "info" }\n-  secret: y z\n "api_key": "q",\n'
        '+TOKEN = "${TOKEN}"\n token_env = "T"\n url = "http://u:p@h"\n'
        '+command = ["x", "--password", "p", "--token", "${TOKEN}", "--api-key",\n+    \'k\', "--secret", "-v"]\n'
    )
    assert masked_file_text(text) == (
        f'+password = {MASK}\n env = {{ DB_TOKEN = {MASK}, LEVEL = "info" }}\n-  secret: {MASK}\n "api_key": {MASK},\n'
        f'+TOKEN = "${{TOKEN}}"\n token_env = "T"\n url = "http://u:{MASK}@h"\n'
        f'+command = ["x", "--password", "{MASK}", "--token", "${{TOKEN}}", "--api-key",\n'
        f'+    "{MASK}", "--secret", "-v"]\n'
    )


def test_a_mask_that_was_saved_as_a_value_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        f'[[server]]\nname = "a"\nbind = "127.0.0.1:1"\napp = "a:b"\nenv = {{ TOKEN = "{MASK}", LEVEL = "info" }}\n'
    )
    (warning,) = load(tmp_path / "pool.toml", {}).warnings
    assert "env.TOKEN: ******** is a secret that" in str(warning)
