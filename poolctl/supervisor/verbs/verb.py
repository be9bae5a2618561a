"""A verb of the control socket, and what it has to work with.

A file of this package that has a function `verbs` adds verbs; nothing else lists them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from poolctl.control.answers import Result
from poolctl.control.messages import Document
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events
from poolctl.pool.select import Selector

from ..active_configuration import ActiveConfiguration
from ..daemon import Daemon

# The selected servers, the options, and what takes lines of progress.
Verb = Callable[[Selector, Document, Progress], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class VerbContext:
    """The pool that verbs act on."""

    core: Core
    events: Events
    daemon: Daemon
    configuration: ActiveConfiguration
