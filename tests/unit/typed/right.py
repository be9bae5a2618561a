"""A program as users write it: mypy and pyright, both strict, accept every line."""

from datetime import timedelta

from poolctl import (
    Field,
    Pool,
    PoolClient,
    PoolConfig,
    PoolError,
    PoolFactory,
    PoolUnderTest,
    ProcessRunner,
    Runner,
    ServerConfig,
    TLSConfig,
    connect,
)
from poolctl.config import Health, Http, Limits, Probe, Restart, Scale

web = ServerConfig(
    name="web",
    bind="127.0.0.1:8000",
    app="shop:app",
    workers=2,
    start_timeout="1m30s",
    stop_timeout=timedelta(seconds=5),
    drain_timeout=10,
    env={"A": "1"},
    tags=["public"],
    env_file=[".env"],
    http=Http(access_log=True, keep_alive="6s"),
    health=Health(readiness=Probe(http="/ready", interval="2s")),
    restart="always",
    tls=TLSConfig(cert="cert.pem"),
    depends_on=["db"],
    scale=Scale(min=1, max=4, idle="5m"),
    limits=Limits(memory="512MiB"),
)
seconds: float = web.start_timeout
more: ServerConfig = web.replace(workers=3)
names: list[str] = [each.name for each in PoolConfig.load("pool.toml")]
retried = ServerConfig(name="queue", command=["celery"], restart=Restart(limit=3), health="/ready")
pool = Pool([web])
found: Pool = pool.filter(Field.NAME, regex="^w")
binds: list[str] = pool.list(Field.NAME, Field.BIND, "web")


async def main() -> None:
    try:
        await pool.start()
    except PoolError as error:
        print([child.message for child in error.exceptions])
    finally:
        await pool.stop()


def ask() -> None:
    client = connect("pool.toml")
    ready: list[bool] = [item["ready"] for item in client.list("web*")["items"]]
    states: list[str] = [item["state"] for item in client.filter(Field.NAME, regex="^w")["items"]]
    urls: list[str] = client.list(Field.NAME, Field.EXPOSE, regex="^w")
    urls += client.list(Field.NAME, "expose", "web", selector={"tag": ["public"]})
    urls += client.list("name", "bind", pattern="web") + client.list("name", "bind", regex=".")
    urls += client.list("name", "bind", pattern="web", regex=".")
    print(ready, states, urls)
    pool.run_until_signal()


def annotated(poolctl_pool: PoolFactory, runner: Runner | None = None) -> str:
    shop: PoolUnderTest = poolctl_pool(users="shop:app")
    with Pool([web], runner=runner or ProcessRunner()) as served, connect(start=True) as client:
        running: PoolClient = client
        return shop.url("users", "/me") + served.url("web") + running.url("web", "/")
