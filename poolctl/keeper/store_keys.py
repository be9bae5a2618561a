"""The names of the entries in the keeper's store.

A colon is in the names of those that stand for a pool's work, its sockets and its workers, and in no others: a keeper
without a supervisor goes on for their sake (`Store.holds_work`).
"""

from __future__ import annotations

# What the pool was started with.
CONTROL, LIFELINE, INHERITED = "control", "lifeline", "inherited"
# Helpers: the links to them, and what the logger is just moving. Zygotes are of the version that started them: one an
# interpreter, one an application.
LOGGER, UNDERWAY = "logger", "logger-underway"
ACCEPTOR = "acceptor"
ZYGOTE, APP_ZYGOTE = "zygote ", "appzygote "
OF_THE_VERSION = (ZYGOTE, APP_ZYGOTE)
# Work, by a server's key, a worker's id, or a number.
LISTENER, ADOPTION, OUTPUT = "listener:", "adoption:", "output:"
WORKER, TALLY, HELD_CONNECTION = "worker:", "tally:", "visitor:"
# What a supervisor leaves to its successor, and what it serves itself.
CONFIGURATION, WANTED, TOTALS = "configuration", "wanted", "totals"
CERTIFICATES = "certificates"
METRICS, DASHBOARD, DASHBOARD_LINK = "metrics", "dashboard", "dashboard link"

# Not an entry, but told beside them at the start: the supervisor is the client itself.
SUPERVISOR = "supervisor"
