"""A PoolConfig becomes a Pool: what is valid goes in, the rest is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from poolctl.config import ServerConfig, TLSConfig
from poolctl.errors import PoolAddError, ServerError

from .pool import Pool
from .ports import DEFAULT_RANGE, with_port

if TYPE_CHECKING:
    from poolctl.runners.protocol import Runner

    from .context import PoolContext
    from .home import Handler


def build(
    configs: Iterable[ServerConfig],
    *,
    problems: Iterable[ServerError] = (),
    handler: Handler | None = None,
    context: PoolContext | None = None,
    runner: Runner | None = None,
    tls: TLSConfig | None = None,
    port_range: str = DEFAULT_RANGE,
) -> Pool:
    """The pool of these servers. Raises PoolAddError with every problem; its `.pool` holds the valid servers."""
    pool = Pool(handler=handler, context=context, runner=runner)
    pool._home.tls = tls
    errors = list(problems)
    for config in configs:
        try:
            pool.store_new(with_port(config, port_range))
        except PoolAddError as error:
            errors += error.exceptions  # type: ignore[arg-type]
        except ServerError as error:
            errors.append(error)
    if errors:
        raise pool._not_added(errors)
    return pool
