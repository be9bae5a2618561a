"""The names of the entries in the keeper's store.

Exactly the names of a pool's sockets and workers contain a colon: a keeper without a supervisor goes on running for
their sake (`Store.holds_work`).
"""

from __future__ import annotations

# Given to the pool at its start.
CONTROL, LIFELINE, INHERITED = "control", "lifeline", "inherited"
# Helpers: the links to them, and the logger's move in progress. Zygotes belong to the version that started them: one an
# interpreter, one an application.
LOGGER, UNDERWAY = "logger", "logger-underway"
ACCEPTOR = "acceptor"
ZYGOTE, APP_ZYGOTE = "zygote ", "appzygote "
OF_THE_VERSION = (ZYGOTE, APP_ZYGOTE)
# Work, by a server's key, a worker's id, or a number.
LISTENER, ADOPTION, OUTPUT = "listener:", "adoption:", "output:"
WORKER, TALLY, HELD_CONNECTION = "worker:", "tally:", "visitor:"
# State that a supervisor leaves to its successor, and its own endpoints.
CONFIGURATION, WANTED, TOTALS = "configuration", "wanted", "totals"
CERTIFICATES = "certificates"
METRICS, DASHBOARD, DASHBOARD_LINK = "metrics", "dashboard", "dashboard link"

# Not an entry, but named with them in the plan: the supervisor is the client itself.
SUPERVISOR = "supervisor"
