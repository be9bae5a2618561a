"""uvicorn's loggers in a worker: their level, and the lines of uvicorn's that poolctl writes in its place.

Applications write to `uvicorn.error` too: their records appear as they do under uvicorn.
"""

from __future__ import annotations

import logging
import os
import sys

import uvicorn

from .uvicorn_parts import LOG_LEVELS, LifespanOn, Settings

_LOGGERS = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")
ABOVE_INFO = ("warning", "error", "critical")


def omit_uvicorns_lines() -> None:
    """Suppress the INFO messages of uvicorn and its WebSockets about startup, shutdown and each connection.

    The worker reports its start and its end, and the access log the connections.
    """
    packages = (uvicorn, sys.modules.get("websockets"))
    directories = tuple(
        os.path.dirname(each.__file__) + os.sep for each in packages if each and each.__file__
    )

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno != logging.INFO or not record.pathname.startswith(directories)

    logging.getLogger("uvicorn.error").addFilter(is_wanted)


class QuietLifespan(LifespanOn):
    """uvicorn's, without its lines at INFO: to make records that the filter drops took 7 % of a worker's start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.logger = _WithoutInfo(self.logger)  # type: ignore[assignment]


class _WithoutInfo(logging.LoggerAdapter[logging.Logger]):
    def info(self, *_: object, **__: object) -> None:
        """Log nothing."""


def omit_lifespan_lines(config: uvicorn.Config) -> None:
    """Leave out the lines of uvicorn's lifespan, of a configuration that has been loaded."""
    if config.lifespan_class is LifespanOn:
        config.lifespan_class = QuietLifespan


def set_log_level(settings: Settings) -> Settings:
    """Set the level that the settings name, before the application is imported, which may override it.

    Returns the settings without it: uvicorn would set it again after the import.
    """
    level = settings.get("log_level")  # left out for uvicorn's default
    if level is None:
        return settings
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(LOG_LEVELS[level])
    return {key: value for key, value in settings.items() if key != "log_level"}
