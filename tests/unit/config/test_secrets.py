"""What is secret in a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from poolctl.config.load import load
from poolctl.config.model import ServerConfig
from poolctl.config.secrets import variables_named_in
from poolctl.config.table_models import MODELS

FILE = """
[dashboard]
token_env = "A"
tls = { cert = "c", key = "k", password_env = "B" }
[[notify]]
type = "gotify"
url_env = "C"
token_env='D'
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
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from env_keys(inner, f"{prefix}{name}.")


def test_every_variable_that_an_env_key_names_is_the_pools_own(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(FILE)
    config = load(tmp_path / "pool.toml", {})
    assert not config.problems
    assert sorted(config.pool_variables) == ["A", "B", "C", "D", "E", "G"]


def test_no_other_section_has_an_env_key_that_would_be_missed() -> None:
    found = {f"{name}.{key}" for name, model in MODELS.items() for key in env_keys(model)}
    assert found == {
        "dashboard.token_env",
        "dashboard.tls.password_env",
        "notify.url_env",
        "notify.token_env",
    }
    assert set(env_keys(ServerConfig)) <= {"tls.password_env"}


def test_names_are_found_in_the_text_of_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(FILE)
    (tmp_path / "more.json").write_text('{"dashboard": {"token_env": "J"}}')
    (tmp_path / "more.yaml").write_text("dashboard:\n  token_env: Y\n")
    found = variables_named_in([str(tmp_path), str(tmp_path / "no such file")])
    assert {"A", "B", "C", "D", "E", "G", "J", "Y"} <= found
