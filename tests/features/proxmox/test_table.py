"""[proxmox]: what it says, what is wrong with it, and that nothing of it shows a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import Tables, secret_variable_names
from poolctl.config.values.problems import Finding
from poolctl.features.proxmox.table import ProxmoxTable, is_token
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.config_files import SERVER, load_text, told

ROUTE = '[[route]]\nto = "http://web:80"\n'
GOOD = '[proxmox]\nurl = "https://pve.example:8006/"\ntoken_env = "PVE_TOKEN"\n'
TOKEN = "pool@pve!routes=s3cr3t"


def table_of(config: PoolConfig) -> ProxmoxTable:
    assert config.problems == []
    table = config.tables.get(ProxmoxTable)
    assert table is not None
    return table


def test_table_has_defaults_and_paths_from_its_file(tmp_path: Path) -> None:
    assert dict(table_of(load_text(tmp_path, GOOD + ROUTE))) == {
        "url": "https://pve.example:8006", "token_env": "PVE_TOKEN", "token_file": None, "verify": True, "nodes": (),
        "refresh": 30.0, "timeout": 5.0, "start": True, "start_timeout": 60.0, "idle": 0.0,
    }  # fmt: skip
    text = '[proxmox]\nurl = "https://pve"\ntoken_file = "token"\nverify = "ca.pem"\nnodes = ["a"]\nrefresh = "1m"\n'
    table = table_of(load_text(tmp_path, text + ROUTE))
    assert (table.token_file, table.verify) == (str(tmp_path / "token"), str(tmp_path / "ca.pem"))
    assert (table.nodes, table.refresh) == (("a",), 60.0)


def test_variable_with_the_token_is_kept_from_servers(tmp_path: Path) -> None:
    table = table_of(load_text(tmp_path, GOOD + ROUTE))
    assert secret_variable_names([], Tables(proxmox=table)) == {"PVE_TOKEN"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('url = "http://pve:8006"', "would send the token in the clear"),
        ('url = "https://root:s3cr3t@pve"', "the address holds a user"),
        ('url = "pve:8006"', "is not the address of a web service"),
        ('url = "https://pve/api2"', "has more than a host and a port"),
        ('url = "https://pve:99999"', "is not the address of a web service"),
        ('url = "https://pve"\nverify = false', "anyone between here and there can take the token"),
        ('url = "https://pve"\nverify = 1', "1 is not allowed here"),
        ('url = "https://pve"\ntoken_file = "t"', "the token is given twice"),
        ('url = "https://pve"\ntoken = "s3cr3t"', "unknown key 'token'"),
        ('url = "https://pve"\nrefresh = 0', "0s is out of range"),
        ("", "url"),
    ],
)
def test_problem_names_its_place_and_no_secret(tmp_path: Path, text: str, problem: str) -> None:
    found = told(tmp_path, f'{ROUTE}[proxmox]\ntoken_env = "PVE_TOKEN"\n{text}\n')
    assert problem in found
    assert f"{tmp_path}/pool.toml:" in found
    assert "proxmox" in found
    assert "s3cr3t" not in found


def test_token_is_required(tmp_path: Path) -> None:
    assert "the API token is missing" in told(tmp_path, f'{ROUTE}[proxmox]\nurl = "https://pve"\n')


def test_validation_warns_of_a_token_or_a_ca_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(text: str) -> str:
        config = load_text(tmp_path, text)
        assert config.problems == []
        config.check_external()
        found = "\n".join(map(str, config.warnings))
        assert "s3cr3t" not in found
        return found

    monkeypatch.delenv("PVE_TOKEN", raising=False)
    assert "PVE_TOKEN is not set here" in warned(GOOD + ROUTE)
    monkeypatch.setenv("PVE_TOKEN", "s3cr3t")
    assert "what PVE_TOKEN holds is not an API token" in warned(GOOD + ROUTE)
    monkeypatch.setenv("PVE_TOKEN", TOKEN)
    assert "proxmox" not in warned(GOOD + ROUTE)
    assert "there is no route" in warned(f"{GOOD}{SERVER}")
    (tmp_path / "token").write_text("s3cr3t")
    found = warned(f'[proxmox]\nurl = "https://pve"\ntoken_file = "token"\nverify = "ca.pem"\n{ROUTE}')
    assert "token holds is not an API token" in found
    assert "ca.pem is not there" in found


def test_finding_about_a_token_or_a_ca_has_its_place_and_fix(tmp_path: Path) -> None:
    token, ca = tmp_path / "token", tmp_path / "ca.pem"
    gateway = ("gateway",)
    named = ProxmoxTable(url="https://pve", token_env="T")
    allowed = "USER@REALM!TOKENID=SECRET"
    assert [*named.check({"T": f" {TOKEN}\n"}, gateway)] == []
    unset = Finding(
        ("token_env",), "the environment variable T is not set here", "set it where the pool is started", "T",
        is_warning=True,
    )  # fmt: skip
    assert [*named.check({"T": ""}, gateway)] == [unset]
    malformed = Finding(
        ("token_env",), "what T holds is not an API token", f"write it as {allowed}", is_warning=True
    )
    assert [*named.check({"T": "x"}, gateway)] == [malformed]
    no_route = Finding(
        (), "there is no route that could be linked", "add a [[route]] to a URL, or remove this",
        is_warning=True,
    )  # fmt: skip
    assert [*named.check({"T": TOKEN}, ())] == [no_route]
    of_file = ProxmoxTable(url="https://pve", token_file=str(token), verify=str(ca))
    missing, no_ca = of_file.check({}, gateway)
    assert (missing.path, missing.found) == (("token_file",), str(token))
    assert missing.message.startswith(f"{token}: ")
    hint = "copy the CA of the cluster there, or fix verify"
    assert no_ca == Finding(("verify",), f"{ca} is not there", hint, str(ca), is_warning=True)
    token.write_text(f"{TOKEN}\n")
    ca.write_text("")
    assert [*of_file.check({}, gateway)] == []
    token.write_text("x")
    (finding,) = of_file.check({}, gateway)
    assert finding == malformed._replace(
        path=("token_file",), message=f"what {token} holds is not an API token"
    )


@pytest.mark.parametrize(("value", "verify"), [("true", True), ("1", True), ("sub/ca.pem", "{}/sub/ca.pem")])
def test_verify_from_a_variable_is_a_truth_or_a_path(tmp_path: Path, value: str, verify: bool | str) -> None:
    text = '[proxmox]\nurl = "https://pve"\ntoken_env = "T"\nverify = "${VERIFY}"\n'
    found = table_of(load_text(tmp_path, text + ROUTE, env={"VERIFY": value})).verify
    assert found == (verify.format(tmp_path) if isinstance(verify, str) else verify)


def test_successor_is_left_the_table(tmp_path: Path) -> None:
    tables = load_text(tmp_path, GOOD + ROUTE).tables
    assert decoded(encoded(StoredConfiguration("shop", [], tables=tables))).tables == tables


def test_token_has_a_user_a_realm_a_name_and_a_secret() -> None:
    assert is_token(TOKEN)
    for wrong in (
        "",
        "s3cr3t",
        "pool@pve!routes",
        "pool!routes=x",
        "a@b!c=",
        "a@b!c=x y",
        "a@b!c=x\n",
        "a b@c!d=x",
    ):
        assert not is_token(wrong)
