"""Hot reload of a pool that a program holds: of servers in its own process, and of processes."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from poolctl import Pool, PoolConfig, PoolRestartError, ServerConfig, State
from poolctl.address import parse
from tests.behaviour.pools import Site
from tests.deadline import wait_until
from tests.http_get import get
from tests.load import Load
from tests.ports import claim_port


@pytest.fixture
def pool(python_pool: Pool) -> Pool:
    return python_pool


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def config(site: Site, name: str, **keys: Any) -> ServerConfig:
    """A server that answers with its instance."""
    app = f"{site.module}:web"
    bind = f"127.0.0.1:{claim_port()}"
    return ServerConfig(**{"name": name, "bind": bind, "app": app, "app_dir": str(site.directory)} | keys)


def instances(servers: list[ServerConfig]) -> list[str]:
    return [get(server.address.port).body.decode() for server in servers]


def test_unix_socket_gets_another_mode_without_a_new_instance(
    pool: Pool, site: Site, short_path: Path
) -> None:
    path = short_path / "a.sock"
    before = config(site, "web", bind=f"unix:{path}")
    pool.apply_sync([before])
    pool.start_sync()
    instance, inode = get(before.bind).body, path.stat().st_ino
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    pool.apply_sync([before.model_copy(update={"socket_mode": "0600"})])
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_ino) == (0o600, inode)
    assert get(before.bind).body == instance
    path.unlink()
    with pytest.raises(PoolRestartError, match="1 change failed") as caught:
        pool.apply_sync([before])
    assert f"the mode of {path} cannot be set" in str(caught.value.exceptions[0])


def test_unix_sockets_that_cannot_be_changed_are_reported_in_the_order_of_the_servers(
    pool: Pool, site: Site, short_path: Path
) -> None:
    servers = [config(site, name, bind=f"unix:{short_path / name}") for name in "abcdef"]
    pool.apply_sync(servers)
    pool.start_sync()
    for server in servers:
        (short_path / server.name).unlink()
    with pytest.raises(PoolRestartError) as caught:
        pool.apply_sync([server.model_copy(update={"socket_mode": "0600"}) for server in servers])
    assert [problem.name for problem in caught.value.exceptions] == list("abcdef")


def test_only_servers_that_differ_get_new_instances(pool: Pool, site: Site) -> None:
    servers = [config(site, name) for name in ("same", "tagged", "other", "gone")]
    same, tagged, other, gone = servers
    pool.apply_sync(servers)
    pool.start_sync()
    before, pids = instances(servers), [server.pids for server in pool.values()]
    pool.apply_sync([config(site, each.name, bind=each.bind) for each in servers])
    assert instances(servers) == before, "equal configurations touch nothing"
    assert [server.pids for server in pool.values()] == pids
    new = config(site, "new")
    pool.apply_sync(
        [
            same,
            tagged.model_copy(update={"tags": ("x",)}),
            other.model_copy(update={"drain_timeout": 1.0}),
            new,
        ]
    )
    after = instances([same, tagged, other])
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert instances([new])
    assert pool.load(tagged.bind).config.tags == ("x",)  # type: ignore[union-attr]
    with pytest.raises(ConnectionRefusedError):
        get(gone.address.port)


def test_a_server_that_fails_or_is_invalid_serves_on_and_the_others_change(pool: Pool, site: Site) -> None:
    a, b, c, d = servers = [config(site, name) for name in "abcd"]
    pool.apply_sync(servers)
    pool.start_sync()
    before = instances(servers)
    changed = [
        a.model_copy(update={"app": "tests.asgi_apps:nothing"}),
        {"name": "b", "bind": b.bind, "app": b.app, "workers": "many"},
        c.model_copy(update={"drain_timeout": 1.0}),
    ]
    with pytest.raises(PoolRestartError) as caught:
        pool.apply_sync(changed)
    assert [(error.name, error.code) for error in caught.value.exceptions] == [("b", 1322), ("a", 1325)]
    after = instances([a, b, c])
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    with pytest.raises(ConnectionRefusedError):
        get(d.address.port)
    pool.apply_sync([a, b, c.model_copy(update={"drain_timeout": 1.0})])
    assert instances([a, b, c]) == after
    assert {server.state for server in pool.values()} == {State.RUNNING}


@pytest.mark.parametrize("wide", ["0.0.0.0", ""])
def test_addresses_that_overlap_or_are_swapped_change_together_or_not_at_all(
    pool: Pool, site: Site, wide: str
) -> None:
    a, b = config(site, "a"), config(site, "b")
    pool.apply_sync([a, b])
    pool.start_sync()
    before = instances([a, b])
    here = a.address.port
    swapped = [a.at(parse(b.bind)), b.at(parse(a.bind))]
    wider = [a.at(parse(f"{wide}:{here}")), b]
    for changed in (wider, swapped):
        broken = changed[0].model_copy(update={"app": "tests.asgi_apps:nothing"})
        with pytest.raises(PoolRestartError):
            pool.apply_sync([broken, changed[1]])
        assert instances([a, b]) == before
    pool.apply_sync(wider)
    after = instances(wider)
    assert (after[0] != before[0], after[1]) == (True, before[1])
    pool.apply_sync([a, b])
    pool.apply_sync(swapped)
    assert not {*instances([a, b])} & {*before, *after}
    assert {server.bind: server.name for server in pool.values()} == {a.bind: "b", b.bind: "a"}


@pytest.mark.heavy_variants
@pytest.mark.parametrize("mode", ["keep_alive", "new_connection"])
def test_apply_under_load_loses_no_request(pool: Pool, mode: str) -> None:
    servers = [
        ServerConfig(name=name, bind=f"127.0.0.1:{claim_port()}", app="tests.load.apps:app")
        for name in ("changed", "same")
    ]
    changed, same = servers
    pool.apply_sync(servers)
    pool.start_sync()
    with Load([each.address.port for each in servers], mode, connections=6, pause=0.002) as load:
        for number in range(1, 4):
            answered = load.look().complete
            wait_until(lambda enough=answered + 100: load.look().complete > enough)
            pool.apply_sync(
                [
                    changed.model_copy(update={"drain_timeout": 20.0 + number}),
                    same,
                    ServerConfig(name=f"new-{number}", bind=f"127.0.0.1:{claim_port()}", app=same.app),
                ]
            )
        report = load.stop()
    assert report.failed == 0, repr(report)
    assert report.sent == report.complete > 300
    assert len(pool) == 3


@pytest.mark.parametrize("runner_of_any_kind", ["processes"], indirect=True)
def test_apply_follows_a_file(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    port = claim_port()

    def written(env: str, more: str = "") -> PoolConfig:
        path.write_text(
            f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "tests.asgi_apps:hello"\n'
            f'env = {{ LEVEL = "{env}" }}\n{more}'
        )
        return PoolConfig.load(path)

    async def scenario() -> None:
        pool.apply_sync(written("info"))
        async with pool:
            (web,) = pool.values()
            (pid,) = web.pids
            await pool.apply(written("info"))
            assert web.pids == [pid]
            await pool.apply(written("debug"))
            assert web.pids != [pid]
            (pid,) = web.pids
            with pytest.raises(PoolRestartError) as caught:
                await pool.apply(written("debug", '[[server]]\nname = "other"\nbinf = "127.0.0.1:1"\n'))
            assert "binf" in str(caught.value)
            assert web.pids == [pid]

    asyncio.run(scenario())
