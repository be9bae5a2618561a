"""The groups of figures: modules of this package with `run(options)`, which yields rows as they are measured."""

from __future__ import annotations

# One per line, so that concurrent additions do not conflict.
GROUPS = {
    "lifecycle": "start, restart and stop of N servers; their memory, and their cost when idle",
    "commands": "commands beside the start of a bare interpreter",
    "configuration": "loading and validating large files",
    "reloading": "a changed server among a thousand: the reload, and the supervisor's answers meanwhile",
    "hostile": "files that want to do harm",
    "lookup": "the pool as a mapping",
    "routing": "the route table that applications read: writing, opening, look-up",
    "gateway": "the gateway beside nginx and a plain HAProxy: rates, latency, processor time and memory",
    "many_routes": "a gateway with ten thousand routes: its start, a changed route, and what that loses",
    "streams": "the streams of the gateway beside a plain HAProxy",
    "restart_under_load": "restarts while clients never pause: requests sent, requests failed",
    "wake": "servers that sleep: how long the first request takes, and what a thousand of them cost",
    "scaling": "servers with triggers: how long until a new worker answers, and what watching a hundred costs",
    "preload": "start, wake and crash of servers of a heavy framework that is imported once",
    "probing": "what it costs the supervisor to probe a thousand servers every five seconds",
    "usage": "what it costs the supervisor to know what a thousand workers use",
    "counting": "what it costs a request to be counted",
    "memory": "the memory of a worker beside a fork of stock uvicorn",
    "serving": "what a request costs a worker beside stock uvicorn",
    "evenness": "long-lived connections on four workers: how many the busiest and the emptiest worker have",
    "crash": "processes that are killed, and an upgrade: how long until the next one serves, and what is lost",
}
