"""Units of systemd become servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Import, assert_valid

UNIT = """\
[Unit]
Description=Shop
After=network.target postgresql.service
Requires=shop.socket
StartLimitBurst=3

[Service]
Type=notify
User=shop
Group=www-data
WorkingDirectory=/srv/shop
Environment="LEVEL=debug" 'MODE=a b'
EnvironmentFile=-/etc/default/there-is-no-such-file
ExecStart=/srv/shop/bin/serve --name %n \\
    --cost 100%%
Restart=always
RestartSec=500ms
TimeoutStopSec=1min 30s
LimitNOFILE=65536
MemoryMax=512M
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""


def test_systemd_unit(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "shop.socket").write_text("[Socket]\nListenStream=/run/shop.sock\n")
    said = imported(UNIT, "shop.service")
    assert said.servers == {
        "shop": {
            "bind": "unix:/run/shop.sock",
            "command": ["/srv/shop/bin/serve", "--name", "shop.service", "--cost", "100%"],
            "cwd": "/srv/shop",
            "restart": {"limit": 3, "policy": "always", "backoff": {"initial": "500ms"}},
            "notify": True,
            "env": {"LEVEL": "debug", "MODE": "a b"},
            "stop_timeout": "1m30s",
            "limits": {"open_files": 65536, "memory": "512MiB"},
            "user": "shop:www-data",
        }
    }
    assert said.remarks == [
        "shop.service:3: After=postgresql.service: depends_on, once it is a server of this file",
        "shop.service:13: EnvironmentFile=-/etc/default/there-is-no-such-file: the file does not exist here",
        "shop.service:21: PrivateTmp=true: no equivalent",
    ]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("-/bin/sleep 5", ["/bin/sleep", "5"]),
        ("/bin/serve $OPTIONS ${MORE}", ["sh", "-c", "exec /bin/serve $OPTIONS $${MORE}"]),
        ("/bin/serve '$$5'", ["/bin/serve", "$5"]),
    ],
)
def test_command_of_a_unit(imported: Import, line: str, command: list[str]) -> None:
    servers = imported(f"[Service]\nExecStart={line}\n", "one.service").servers
    assert servers["one"] == {"cwd": "/", "command": command}


def test_commands_around_a_unit_are_hooks(imported: Import, tmp_path: Path) -> None:
    text = """
        [Service]
        ExecStartPre=/bin/old
        ExecStartPre=
        ExecStart=/bin/a
        ExecStartPre=/bin/b --name=%N 'two words'
        ExecStopPost=-/bin/rm -r $RUNTIME_DIRECTORY
    """
    said = imported(text, "shop.service")
    assert said.servers["shop"]["hooks"] == {
        "before_start": ["/bin/b", "--name=shop", "two words"],
        "after_stop": ["sh", "-c", "/bin/rm -r $RUNTIME_DIRECTORY || true"],
    }
    assert_valid(tmp_path, said.text)
    of_variables = "[Service]\nExecStart=/bin/a\nExecStartPre=/bin/mkdir ${HOME}/x\n"
    hooks = imported(of_variables, "a.service").servers["a"]["hooks"]
    assert hooks == {"before_start": ["sh", "-c", "exec /bin/mkdir $${HOME}/x"]}, "a file's ${ is $${"
