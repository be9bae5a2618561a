"""`poolctl export haproxy`: files that HAProxy accepts, and warnings of what it cannot do."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.environments import need_gateway
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import RealPool
from tests.unit.cli.conftest import Command

FILES = """
[gateway]
bind = [":8080", { bind = "127.0.0.1:8443", tls = { cert = "a.pem", key = "a.key", min_version = "1.3" } }]
access_log = true

[[route]]
host = "shop.example.com"
path = "/api"
to = ["tag:api", "http://10.0.0.7:9000"]
max_body_size = "1M"
backend_limit = { concurrency = 3, queue = 4 }

[[server]]
name = "web"
bind = "127.0.0.1:8081"
app = "shop:web"
tags = ["api"]
labels = { "route.host" = "a.example.com", "route.waiting_page" = "true" }

[[server]]
name = "moving"
bind = "127.0.0.1:auto"
app = "shop:web"
tags = ["api"]

[[server]]
name = "program"
bind = "127.0.0.1:5433"
command = ["program"]
socket = "proxied"
forward = "tcp"

[[stream]]
alias = "postgres"
bind = ":5432"
to = "10.0.0.5:5432"

[[server]]
name = "unused"
bind = "127.0.0.1:auto"
app = "shop:web"
"""
PLAIN = '[[server]]\nname = "web"\nbind = "127.0.0.1:8081"\napp = "shop:web"\n'


def test_written_files_are_accepted_once_the_named_commands_have_run(
    poolctl: Command, directory: Path
) -> None:
    haproxy = program("haproxy")
    cert, key = certificate(directory)
    cert.rename(directory / "a.pem")
    key.rename(directory / "a.key")
    (directory / "pool.toml").write_text(FILES)
    done = poolctl("export", "haproxy", "--directory", "its files")
    assert done.code == 0
    text = (directory / "its files" / "haproxy.cfg").read_text()
    assert "bind 0.0.0.0:8080\n" in text
    assert "server web 127.0.0.1:8081 " in text
    assert "listen stream:postgres" in text
    assert "log stdout len 4096 format raw local0 err\n" in text
    assert "sleeping.map" not in text, "nobody would fill it"
    assert ":5433" not in text, "its processes have ports that the pool chooses"
    commands = done.out.partition("next: ")[2].strip()
    assert commands.endswith(f"{haproxy} -c -f 'its files/haproxy.cfg'")
    checked = subprocess.run(commands, shell=True, capture_output=True, text=True, cwd=directory)
    assert checked.returncode == 0, checked.stderr
    bundle = directory / "its files" / "listener-2-1.pem"
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    warnings = done.err
    assert "server[0].labels.route.waiting_page: HAProxy alone does not know which servers sleep" in warnings
    assert "moving has no address that HAProxy can know" in warnings
    assert warnings.count("has no address that HAProxy can know") == 1
    assert "need files beside" not in warnings


def test_printed_files_name_the_commands_for_the_others(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(FILES)
    done = poolctl("export", "haproxy")
    assert done.code == 0
    assert "# haproxy.cfg\n# Made by" in done.out
    assert "listener-2-1.pem [ssl-min-ver TLSv1.3]" in done.out
    certificates = f"sed '/PRIVATE KEY/,/PRIVATE KEY/d' {directory}/a.pem"
    bundled = f"{{ {certificates}; echo; cat {directory}/a.key; }} > listener-2-1.pem"
    assert f"the certificates need files beside haproxy.cfg: (umask 077; {bundled})" in done.err


def test_key_with_a_password_is_written_without_it(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("haproxy")
    cert, key = certificate(directory, "a.example")
    locked = directory / "locked.key"
    monkeypatch.setenv("KEY_PASSWORD", "secret")
    subprocess.run(
        [program("openssl"), "pkey", "-in", key, "-aes256", "-passout", "env:KEY_PASSWORD", "-out", locked],
        check=True,
    )
    tls = f'{{ cert = "{cert}", key = "{locked}", password_env = "KEY_PASSWORD" }}'
    (directory / "pool.toml").write_text(
        f'[gateway]\nbind = [{{ bind = "127.0.0.1:8443", tls = {tls} }}]\n'
        '[[route]]\nto = ["http://127.0.0.1:9000"]\n'
    )
    done = poolctl("export", "haproxy", "--directory", "out")
    assert done.code == 0, done.err
    commands = done.out.partition("next: ")[2].strip()
    checked = subprocess.run(commands, shell=True, capture_output=True, text=True, cwd=directory)
    assert checked.returncode == 0, checked.stderr
    assert "ENCRYPTED" not in (directory / "out" / "listener-1-1.pem").read_text()


def test_pool_without_a_gateway_has_nothing_to_export(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(PLAIN)
    done = poolctl("export", "haproxy")
    assert done.code == 1
    assert "the pool has no gateway" in done.err


def test_options_of_systemd_are_refused(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(FILES)
    done = poolctl("export", "haproxy", "--user")
    assert done.code == 2
    assert "--user is for systemd" in done.err


def test_export_takes_the_form_with_o_and_the_place_with_directory(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(FILES)
    printed = poolctl("export", "haproxy").out
    files = poolctl("export", "haproxy", "-o", "json").json["items"]
    assert "\n".join(f"# {each['name']}\n{each['text']}" for each in files) == printed
    names = poolctl("export", "haproxy", "-o", "name").out.split()
    assert names == [each["name"] for each in files]
    wrong = poolctl("export", "haproxy", "-o", "out")
    assert (wrong.code, wrong.err.splitlines()[1]) == (2, "  hint: --directory out writes the files there")
    assert not (directory / "out").exists()


def test_names_of_certificates_are_written_where_one_demands_a_certificate_of_clients(
    poolctl: Command, directory: Path
) -> None:
    haproxy = program("haproxy")
    cert, key = certificate(directory, "closed.example")
    bundle = directory / "closed.pem"
    bundle.write_bytes(cert.read_bytes() + key.read_bytes())
    tls = f'{{ cert = "{bundle}", ca = "{bundle}", client_auth = "required", ciphers = "HIGH" }}'
    (directory / "pool.toml").write_text(
        f'[gateway]\nbind = [{{ bind = "127.0.0.1:8443", tls = {tls} }}]\n'
        '[[route]]\nto = ["http://127.0.0.1:9000"]\n'
    )
    assert poolctl("export", "haproxy", "--directory", "out").code == 0
    certificates = (directory / "out" / "listener-1.crt-list").read_text().splitlines()
    options = f"ssl-min-ver TLSv1.2 verify required ca-file {bundle} ciphers HIGH"
    assert certificates[1:] == [f"{bundle} [{options}] closed.example"]
    found = (directory / "out" / "listener-1.crt-list.map").read_text().splitlines()
    assert found[1:] == ["closed.example 0+"]
    assert "http-request return status 421 " in (directory / "out" / "haproxy.cfg").read_text()
    checked = subprocess.run([haproxy, "-c", "-f", "out/haproxy.cfg"], capture_output=True, cwd=directory)
    assert checked.returncode == 0, checked.stderr
    bundle.unlink()
    refused = poolctl("export", "haproxy", "--directory", "out")
    assert (refused.code, str(bundle) in refused.err) == (1, True)


def test_addresses_are_written_as_haproxy_names_them(poolctl: Command, directory: Path) -> None:
    pool = directory / "pool.toml"
    route = '[[route]]\nto = ["http://127.0.0.1:9000"]\n'
    stream = '[[stream]]\nbind = "unix:/run/stream.sock"\nmode = "0600"\nowner = "root:mail"\nto = "127.0.0.1:9001"\n'
    pool.write_text(f'[gateway]\nbind = ["unix:/run/gateway.sock", "[::1]:8080"]\n{route}{stream}')
    text = poolctl("export", "haproxy").out
    assert "bind unix@/run/gateway.sock mode 0666\n" in text
    assert "bind unix@/run/stream.sock mode 0600 user root group mail\n" in text
    assert "bind ipv6@::1:8080\n" in text


@pytest.mark.integration
def test_export_prints_what_the_gateway_has_but_for_addresses_and_what_a_replaced_process_passes_on(
    real_pool: RealPool,
) -> None:
    need_gateway()
    real_pool.write(
        "pool.toml",
        f'[gateway]\nbind = "127.0.0.1:{claim_port()}"\ntrusted_proxies = ["10.0.0.1"]\n'
        '[[route]]\nto = "http://127.0.0.1:9"\nlimit = { requests_per_second = 9, per_client = { concurrency = 3 } }\n'
        '[[route]]\nalias = "a"\npath = "/a"\nto = ["h2c://127.0.0.1:9", "http://127.0.0.1:10"]\n'
        'set_headers = { X-A = "b" }\n'
        f'[[stream]]\nbind = "127.0.0.1:{claim_port()}"\nto = "127.0.0.1:9"\n',
    )
    real_pool.ok("start")
    (used,) = wait_until(lambda: [*real_pool.runtime.rglob("haproxy.cfg")])
    real_pool.ok("export", "haproxy", "--directory", "out")
    printed = (real_pool.directory / "out" / "haproxy.cfg").read_text().splitlines()[1:]
    own, others = (
        [re.sub(r"^(    bind|    log) \S+", r"\1 ADDRESS", line) for line in lines]
        for lines in (used.read_text().splitlines(), printed)
    )
    begin = own.index(
        "    # A replaced process passes requests on as they are; the next one accepts them from it alone."
    )
    del own[begin : own.index("    acl uses_tls var(txn.tls) -m bool") + 1]
    own.remove("    use_backend next if { stopping } has_next")
    del own[own.index("backend next") : own.index("backend next") + 5]
    own = [line for line in own if not line.startswith("    stats socket ")]
    assert own == others
