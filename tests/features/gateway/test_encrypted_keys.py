"""Keys with a password: HAProxy gets them decrypted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from poolctl.config import Tables, TLSConfig
from poolctl.errors import ServerError
from poolctl.features.gateway.supervision.listeners import plan_of
from poolctl.features.gateway.table import GatewayConfig, GatewayListener
from tests.certificates import certificate
from tests.config_files import load_text
from tests.programs import program

PASSWORD = "a password"


def encrypted(key: Path) -> bytes:
    """The key, encrypted with PASSWORD."""
    command = [program("openssl"), "pkey", "-in", key, "-aes256", "-passout", f"pass:{PASSWORD}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def contents(tls: TLSConfig, **env: str) -> list[bytes]:
    """The certificate and the key that HAProxy gets."""
    gateway = GatewayConfig(bind=(GatewayListener(bind=":443", tls=(tls,)),))
    plan = plan_of(Tables(gateway=gateway), (), env)
    assert plan is not None
    (found,) = plan.certificates[":443"]
    return [*found.contents]


@pytest.mark.parametrize("is_one_file", [False, True])
def test_key_is_decrypted_for_haproxy(tmp_path: Path, is_one_file: bool) -> None:
    cert, key = certificate(tmp_path)
    plain, locked = key.read_bytes(), encrypted(key)
    if is_one_file:
        cert.write_bytes(locked + cert.read_bytes())
    else:
        key.write_bytes(locked)
    tls = TLSConfig(cert=str(cert), key=None if is_one_file else str(key), password_env="PASSWORD_OF_KEY")
    of_certificate, of_key = contents(tls, PASSWORD_OF_KEY=PASSWORD)
    assert of_key.strip() == plain.strip()
    assert b"PRIVATE" not in of_certificate
    assert b"BEGIN CERTIFICATE" in of_certificate
    with pytest.raises(ServerError, match="the password does not open the key"):
        contents(tls, PASSWORD_OF_KEY="another")


def test_key_without_a_password_is_taken_as_it_is(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    assert contents(TLSConfig(cert=str(cert), key=str(key), password_env="UNUSED")) == [
        cert.read_bytes(), key.read_bytes(),
    ]  # fmt: skip


def test_missing_openssl_is_a_problem_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    key.write_bytes(encrypted(key))
    tls = f'{{ cert = "{cert}", key = "{key}", password_env = "PASSWORD_OF_KEY" }}'
    text = f'[gateway]\nprogram = "{program("haproxy")}"\nbind = [{{ bind = ":443", tls = {tls} }}]\n'
    text += '[[route]]\nto = "http://127.0.0.1:9000"\n'
    monkeypatch.setenv("PASSWORD_OF_KEY", PASSWORD)
    assert load_text(tmp_path, text).check_external() == []
    monkeypatch.setenv("PATH", "")
    (problem,) = map(str, load_text(tmp_path, text).check_external())
    assert "gateway.bind[0].tls.password_env: the program openssl, which decrypts the key" in problem
    assert "apt install openssl, or store the key without a password" in problem
