"""Unit files: whatever a path or a value is spelled with, systemd reads back the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig
from poolctl.cli.commands.export import (
    ServicePool,
    escape_unit_value,
    missing_variables,
    quote_unit_word,
    render,
    stop_seconds,
    systemd_command_line,
    unit_name,
    units,
)

from .conftest import Command

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def read_words(line: str) -> list[str]:
    """The words of a line as systemd.syntax(7) has them, `%%` being `%`; nothing else is forgiven."""
    assert "\n" not in line
    words: list[str] = []
    at = 0
    while at < len(line):
        found = ""
        if line[at] == '"':
            at += 1
            while line[at] != '"':
                if line[at] == "\\":
                    at += 1
                    if line[at] == "x":
                        found += chr(int(line[at + 1 : at + 3], 16))
                        at += 3
                        continue
                    found += _ESCAPED[line[at]]
                else:
                    found += line[at]
                at += 1
            at += 1
            assert at == len(line) or line[at] == " "
        else:
            while at < len(line) and line[at] != " ":
                assert line[at] not in "\"'\\\t"
                found += line[at]
                at += 1
        assert found.replace("%%", "").count("%") == 0
        words.append(found.replace("%%", "%"))
        at += 1
    return words


@pytest.mark.slow
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_words_are_read_back_as_they_were(words: list[str]) -> None:
    assert read_words(" ".join(map(quote_unit_word, words))) == words


@given(st.lists(WORDS, max_size=3))
def test_arguments_hold_no_variable(arguments: list[str]) -> None:
    path, *read = read_words(systemd_command_line(["/usr/bin/pool$ctl", *arguments]))
    assert path == "/usr/bin/pool$ctl"
    assert [argument.replace("$$", "") for argument in read] == [each.replace("$", "") for each in arguments]
    assert [argument.replace("$$", "$") for argument in read] == arguments


@pytest.mark.parametrize("value", ["a\nb", " a", "a ", "a\\", "\x07"])
def test_a_line_that_cannot_be_written_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        escape_unit_value(value)
    with pytest.raises(ValueError, match="cannot be written"):
        quote_unit_word("a\0b")


def test_quotes_and_control_characters_of_a_word_are_escaped() -> None:
    assert quote_unit_word('\x01\n\t\r\x1f "\\\x7f~é') == r'"\x01\n\t\r\x1f \"\\\x7f~é"'


def test_a_percent_sign_is_no_specifier() -> None:
    assert escape_unit_value("/srv/50% off") == "/srv/50%% off"


def test_unit_name_has_allowed_characters_only() -> None:
    assert unit_name("poolctl-a b/ü.x") == "poolctl-a-b--.x"


def test_comments_stand_on_lines_of_their_own() -> None:
    assert render(["Made."], [("Unit", [("#", "why"), ("A", "b")])]) == "# Made.\n\n[Unit]\n# why\nA=b\n"


def server(name: str, port: int, drain: float, stop: float, *needs: str) -> ServerConfig:
    return ServerConfig(
        name=name, bind=f"127.0.0.1:{port}", app="a:b", drain_timeout=drain, stop_timeout=stop, depends_on=list(needs)
    )  # fmt: skip


def test_stop_times_add_up_along_dependencies_only() -> None:
    web, db, other = server("web", 81, 30, 10, "db"), server("db", 82, 20, 5), server("other", 83, 50, 1)
    margin = stop_seconds([])
    assert margin >= 10
    assert stop_seconds([web, db, other]) == 65 + margin
    assert stop_seconds([db, other]) == 51 + margin
    # The gateway stops after them.
    assert stop_seconds([db, other], 20.0) == 71 + margin


def pool_of(*binds: str, **keys: Any) -> ServicePool:
    servers = [ServerConfig(name=f"s{number}", bind=bind, app="a:b") for number, bind in enumerate(binds)]
    given: dict[str, Any] = {
        "name": "shop", "files": ["/srv/pool.toml"], "servers": servers, "poolctl": ["/bin/poolctl"], "env": {},
        "listen": {},
    }  # fmt: skip
    return ServicePool(**(given | keys))


def test_named_sockets_have_a_unit_each_and_the_service_names_them_all() -> None:
    listen = {"web": "0.0.0.0:80", "s1": "/run/api"}
    found = units(pool_of("fd:web", "fd:api", ":9", listen=listen), of_user=False)
    assert list(found) == ["poolctl-shop.service", "poolctl-shop-web.socket", "poolctl-shop-api.socket"]
    assert "Sockets=poolctl-shop-web.socket poolctl-shop-api.socket\n" in found["poolctl-shop.service"]
    lines = found["poolctl-shop-web.socket"].splitlines()
    assert [each for each in lines if each.startswith(("Listen", "FileD", "Service"))] == [
        "ListenStream=0.0.0.0:80", "FileDescriptorName=web", "Service=poolctl-shop.service",
    ]  # fmt: skip
    assert "ListenStream=/run/api\n" in found["poolctl-shop-api.socket"]


def test_numbered_sockets_are_in_one_unit_by_their_numbers() -> None:
    found = units(pool_of("fd:4", "fd:3", listen={"3": "127.0.0.1:3", "4": "127.0.0.1:4"}), of_user=False)
    assert list(found) == ["poolctl-shop.service", "poolctl-shop.socket"]
    text_of_socket = found["poolctl-shop.socket"]
    assert text_of_socket.index("127.0.0.1:3") < text_of_socket.index("127.0.0.1:4")
    assert "FileDescriptorName" not in text_of_socket


@pytest.mark.parametrize("binds", [("fd:4",), ("fd:3", "fd:5"), ("fd:3", "fd:web")])
def test_numbers_with_a_gap_or_beside_names_are_refused(binds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="without a gap"):
        units(pool_of(*binds, listen={"4": ":4", "3": ":3", "5": ":5", "web": ":80"}), of_user=False)


@pytest.mark.parametrize(
    ("expose", "address"),
    [
        ("http://127.0.0.1:80/x", "127.0.0.1:80"),
        ("http://[::1]:80", "[::1]:80"),
        ("http://localhost:80", "127.0.0.1:80"),
        ("http://shop.example:80", None),
        ("http://127.0.0.1", None),
        (None, None),
    ],
)
def test_socket_listens_at_a_local_exposed_address_unless_one_is_given(
    expose: str | None, address: str | None
) -> None:
    server = ServerConfig(name="web", bind="fd:web", app="a:b", expose=expose)
    pool = pool_of(servers=[server])
    if address is None:
        with pytest.raises(
            ValueError, match="systemd needs an address to listen on for fd:web: --listen web="
        ):
            units(pool, of_user=False)
    else:
        assert f"ListenStream={address}\n" in units(pool, of_user=False)["poolctl-shop-web.socket"]


def test_service_of_a_user_waits_for_no_network_and_is_not_hardened() -> None:
    service = {
        of_user: units(
            pool_of(":1", user="me", env={"PATH": "/x"}, runtime_directory="/run/poolctl-7"), of_user=of_user
        )["poolctl-shop.service"]
        for of_user in (False, True)
    }
    for line in (
        "After=network-online.target\n",
        "User=me\n",
        "RuntimeDirectory=poolctl-7\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes\n",
        "WantedBy=multi-user.target\n",
    ):
        assert (line in service[False], line in service[True]) == (True, False)
    assert "WantedBy=default.target\n" in service[True]
    assert "ExecStart=/bin/poolctl -c /srv/pool.toml run\n" in service[True]
    assert "WorkingDirectory=/srv\n" in service[True]
    assert len(service[False].splitlines()) > len(service[True].splitlines()) + 3
    assert "User=" not in units(pool_of(":1"), of_user=False)["poolctl-shop.service"]


def test_variables_that_the_files_use_come_from_a_file_of_the_service(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("a = '${TOKEN}' # ${OTHER:-x} ${VIRTUAL_ENV} ${TOKEN}\n")
    pool = pool_of(":1", files=[str(file), str(tmp_path / "missing")])
    assert missing_variables(pool) == ["TOKEN"]
    assert missing_variables(pool_of(":1", files=[str(tmp_path)])) == ["TOKEN"], "of each file in a directory"
    assert "EnvironmentFile=-/etc/poolctl/shop.env\n" in units(pool, of_user=False)["poolctl-shop.service"]
    assert (
        "EnvironmentFile=-%h/.config/poolctl/shop.env\n" in units(pool, of_user=True)["poolctl-shop.service"]
    )
    assert "EnvironmentFile" not in units(pool_of(":1"), of_user=False)["poolctl-shop.service"]


SERVICE = """\
# Made by `poolctl export systemd`.
# The pool: /srv/my shop/pool.toml, /srv/more.toml

[Unit]
Description=Pool of HTTP servers: shop
Wants=network-online.target
After=network-online.target

[Service]
# Ready when every enabled server has answered; `systemctl status` names those that have not.
Type=notify
NotifyAccess=main
# A restart of the unit keeps the pool's sockets here: connections wait, and none is refused.
FileDescriptorStoreMax=4096
ExecStart=/bin/poolctl -c "/srv/my shop/pool.toml" -c /srv/more.toml run
ExecReload=/bin/poolctl -c "/srv/my shop/pool.toml" -c /srv/more.toml reload
WorkingDirectory=/srv/my shop
User=me
Environment=POOLCTL_RUNTIME_DIR=/run/pools
Environment=VIRTUAL_ENV=/srv/venv
# The pool stops its servers itself, in order; processes that remain are then killed.
KillMode=mixed
TimeoutStopSec=55
# A server that fails to start does not affect the others; each has its own start_timeout.
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=2 5 7 8
WatchdogSec=60
# The pool replaces a worker that the kernel killed for its memory.
OOMPolicy=continue
SyslogIdentifier=poolctl-shop
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectHostname=yes
LockPersonality=yes
RestrictRealtime=yes

[Install]
WantedBy=multi-user.target
"""
SOCKET = """\
# Made by `poolctl export systemd`.

[Unit]
Description=Sockets of the pool shop: s0

[Socket]
ListenStream=0.0.0.0:80
FileDescriptorName=web
# Without it an answer on a kept-alive connection may wait 40 ms for the client's acknowledgement.
NoDelay=yes
Backlog=2048
Service=poolctl-shop.service

[Install]
WantedBy=sockets.target
"""


def test_units_are_these_texts() -> None:
    files = ["/srv/my shop/pool.toml", "/srv/more.toml"]
    env = {
        "POOLCTL_RUNTIME_DIR": "/run/pools",
        "VIRTUAL_ENV": "/srv/venv",
        "POOLCTL_STATE_DIR": "",
        "HOME": "/root",
    }
    assert units(pool_of(":1", files=files, env=env, user="me"), of_user=False) == {
        "poolctl-shop.service": SERVICE
    }
    found = units(pool_of("fd:web", listen={"web": "0.0.0.0:80"}), of_user=False)
    assert found["poolctl-shop-web.socket"] == SOCKET


SUDO = "sudo " if os.geteuid() else ""


def test_units_are_printed_each_under_its_name_or_as_json(poolctl: Command, directory: Path) -> None:
    said = poolctl("export", "systemd")
    assert said.code == 0
    place = (
        "units && sudo cp units/poolctl-shop.service /etc/systemd/system" if SUDO else "/etc/systemd/system"
    )
    assert said.err.endswith(
        f"/pool.toml export systemd --directory {place} && {SUDO}systemctl daemon-reload && "
        f"{SUDO}systemctl enable --now poolctl-shop.service\n"
    )
    assert said.out.startswith("# poolctl-shop.service\n# Made by `poolctl export systemd`.\n")
    (file,) = poolctl("export", "systemd", "-o", "json").json["items"]
    assert (file["name"], file["text"].splitlines()[0]) == (
        "poolctl-shop.service", "# Made by `poolctl export systemd`.",
    )  # fmt: skip
    assert poolctl("export", "systemd", "-o", "name").out == "poolctl-shop.service\n"


@pytest.mark.parametrize(
    ("options", "copied", "systemctl", "more"),
    [
        ([], (f"{SUDO}cp", "/etc/systemd/system"), f"{SUDO}systemctl", ""),
        (
            ["--user"], ("mkdir -p ~/.config/systemd/user && cp", "~/.config/systemd/user"),
            "systemctl --user", " && loginctl enable-linger",
        ),
    ],
)  # fmt: skip
def test_units_are_written_into_a_directory_with_the_commands_that_enable_them(
    poolctl: Command,
    directory: Path,
    options: list[str],
    copied: tuple[str, str],
    systemctl: str,
    more: str,
) -> None:
    for _ in range(2):
        said = poolctl("export", "systemd", "--directory", "out/units", *options)
        assert said == (0, (
            "wrote out/units/poolctl-shop.service; next: "
            f"{copied[0]} out/units/poolctl-shop.service {copied[1]} && {systemctl} daemon-reload && "
            f"{systemctl} enable --now poolctl-shop.service{more}\n"
        ), "")  # fmt: skip
    assert "[Service]" in (directory / "out/units/poolctl-shop.service").read_text()


def test_file_of_somebody_else_is_not_overwritten(poolctl: Command, directory: Path) -> None:
    (directory / "poolctl-shop.service").write_text("[Service]\n# Made by `poolctl export systemd`.\n")
    said = poolctl("export", "systemd", "--directory", ".")
    assert (said.code, said.err) == (8, (
        "error: poolctl-shop.service was not made by this export\n"
        "  hint: remove it, or write into another directory\n"
    ))  # fmt: skip
    (directory / "file").touch()
    said = poolctl("export", "systemd", "--directory", "file/below")
    assert (said.code, "cannot write" in said.err) == (1, True)


def test_units_are_compared_without_a_change(poolctl: Command, directory: Path) -> None:
    unit = directory / "out" / "poolctl-shop.service"
    command = ("export", "systemd", "--directory", "out", "--check")
    assert poolctl(*command).code == 1
    assert not unit.parent.exists()
    poolctl(*command[:-1])
    (directory / "out" / "poolctl-other.service").write_text("# Made by `poolctl export systemd`.\n")
    assert poolctl(*command) == (0, "1 file, nothing to change\n", "")
    text = unit.read_text().replace("Type=notify", "Type=simple")
    unit.write_text(text)
    said = poolctl(*command)
    assert (said.code, "out/poolctl-shop.service differs" in said.err) == (1, True)
    assert unit.read_text() == text
    assert poolctl("export", "systemd", "--check").code == 2


def test_variables_that_the_service_lacks_are_named_with_the_file_for_them(
    poolctl: Command, directory: Path
) -> None:
    file = directory / "pool.toml"
    file.write_text(file.read_text().replace("orders.example", "${HOST_OF_ORDERS:-orders.example}"))
    assert poolctl("export", "systemd", "--directory", "out").err == ""
    file.write_text(file.read_text().replace(":-orders.example", "").replace("users", "${NAME_OF_USERS}"))
    said = poolctl("validate")
    assert said.code == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOST_OF_ORDERS", "orders.example")
        patch.setenv("NAME_OF_USERS", "users")
        said = poolctl("export", "systemd", "--directory", "out")
    assert said.code == 0
    assert said.err == (
        "warning: the service lacks these variables: NAME_OF_USERS, HOST_OF_ORDERS; "
        "put them into /etc/poolctl/shop.env\n"
    )


def test_variables_that_the_service_reads_from_the_env_file_are_not_missing(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, env_file = directory / "pool.toml", directory / ".env"
    file.write_text(file.read_text().replace("orders.example", "${HOST_OF_ORDERS}"))
    env_file.write_text("HOST_OF_ORDERS=orders.example\n")
    said = poolctl("export", "systemd", "--directory", "out")
    assert (said.code, said.err) == (0, "")
    if os.geteuid() == 0:
        # Root reads it by grace of sudo, which does not start the service.
        os.chown(env_file, 4321, 4321)
        monkeypatch.setenv("SUDO_UID", "4321")
        said = poolctl("export", "systemd", "--directory", "out")
        assert (said.code, "lacks these variables: HOST_OF_ORDERS" in said.err) == (0, True)


@pytest.mark.parametrize("given", ["web", "=127.0.0.1:80", "web="])
def test_address_to_listen_on_is_given_with_a_name(poolctl: Command, given: str) -> None:
    said = poolctl("export", "systemd", "--listen", given)
    assert (said.code, said.err) == (2, (
        f"error: --listen: {given!r} is not NAME=ADDRESS\n  hint: --listen web=127.0.0.1:8080\n"
    ))  # fmt: skip


def test_inherited_socket_is_listened_on_where_the_option_says(poolctl: Command, directory: Path) -> None:
    file = directory / "pool.toml"
    file.write_text(file.read_text().replace("127.0.0.1:8081", "fd:web"))
    said = poolctl("export", "systemd")
    assert (said.code, "--listen web=127.0.0.1:8080" in said.err) == (1, True)
    for name in ("web", "fd:web"):
        said = poolctl("export", "systemd", "--listen", f"{name}=0.0.0.0:80")
        assert said.code == 0
        assert "ListenStream=0.0.0.0:80\n" in said.out


def test_unknown_system_is_refused_with_those_that_are_known(poolctl: Command) -> None:
    said = poolctl("export", "upstart")
    assert said.code == 2
    assert "systemd" in said.err
