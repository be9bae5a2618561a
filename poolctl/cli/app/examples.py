"""What the help of a command shows beside its options: how it is used. Every line of it is parsed by a test."""

from __future__ import annotations

BEGIN = (
    "poolctl init      a starter pool.toml",
    "poolctl validate  what is wrong with it, and the mend",
    "poolctl start     in the background; or: poolctl run",
    "poolctl list      what is there; then: logs NAME, restart NAME, stop",
)

EXAMPLES: dict[str, tuple[str, ...]] = {
    "start": (
        "poolctl start                 everything",
        "poolctl start users 'api-*'   these, and what they depend on",
        "poolctl start --tag api --timeout 1m",
    ),
    "stop": (
        "poolctl stop                  everything, and the supervisor",
        "poolctl stop users            only this, and what depends on it",
    ),
    "restart": (
        "poolctl restart --tag api     nothing is refused meanwhile",
        "poolctl restart --not users   all but this",
    ),
    "run": (
        "poolctl run                   until Ctrl-C",
        "poolctl run --watch           takes over new code and configuration",
        "poolctl run -- pytest tests   while the tests run; exits as they do",
        "poolctl run --debug users     this server alone; breakpoint() stops here",
    ),
    "wait": (
        "poolctl wait users --for ready --timeout 30s",
        "poolctl wait --for stopped",
    ),
    "reload": (
        "poolctl reload --dry-run      what would change; exit 3 if anything",
        "poolctl reload                do it",
    ),
    "scale": (
        "poolctl scale users 4         until the next reload",
        "poolctl scale --tag api 4 --save",
    ),
    "drain": ("poolctl drain users           then: poolctl undrain users",),
    "undrain": ("poolctl undrain --all         every server that is drained",),
    "enable": ("poolctl enable --all          every server that is disabled",),
    "disable": ("poolctl disable users --save  also after the next start",),
    "add": (
        "poolctl add docs --bind 127.0.0.1:8083 --app docs.main:app --set workers=2",
        "poolctl add files --bind :8084 --set 'command=[\"caddy\", \"run\"]' --save",
        "poolctl add -f more.toml      every server of that file",
    ),
    "remove": ("poolctl remove docs --save    from the running pool and from its file",),
    "list": (
        "poolctl list -o wide",
        "poolctl list --state failed --state backoff -o name",
        "poolctl list -o json          for scripts; every other command knows it too",
    ),
    "filter": (
        "poolctl filter name users     equal, upper or lower case",
        "poolctl filter bind --regex '^127\\.' --target expose",
    ),
    "walk": (
        "poolctl walk -- curl -fsS '{expose}/health'",
        "poolctl walk --tag api -j 4 -- sh -c 'echo $POOLCTL_NAME $POOLCTL_PIDS'",
    ),
    "status": ("poolctl status && echo all is well",),
    "show": ("poolctl show users            each value with the place that it comes from",),
    "logs": (
        "poolctl logs -f               of all servers, merged",
        "poolctl logs users --since 10m",
    ),
    "events": (
        "poolctl events -f",
        "poolctl events users --since 1h --kind recovery",
    ),
    "top": ("poolctl top --sort memory",),
    "validate": (
        "poolctl validate --import     import the applications too",
        "poolctl -c pool.toml -c production.toml validate",
    ),
    "config": ("poolctl config users -o toml",),
    "schema": ("poolctl schema > pool.schema.json",),
    "init": ("poolctl init --app            with a tiny application to start with",),
    "completion": ("poolctl completion bash >> ~/.bashrc",),
    "export": ("poolctl export systemd -o /etc/systemd/system",),
}  # fmt: skip

NOTES: dict[str, tuple[str, ...]] = {
    "walk": (
        "In CMD {name}, {bind}, {host}, {port}, {expose}, {state}, {pid}, {pids} and",
        "{tags} are replaced; its environment has them as POOLCTL_NAME and so on.",
    ),
    "status": ("Exit 0: all that should run is ready; 3: it is not, or no supervisor runs.",),
}


def epilog(verb: str) -> str | None:
    """The paragraphs below the options, their lines kept; None for a command that explains itself."""
    paragraphs = []
    if verb in NOTES:
        paragraphs.append("\b\n" + "\n".join(NOTES[verb]))
    if verb in EXAMPLES:
        paragraphs.append("\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[verb]))
    return "\n\n".join(paragraphs) or None


def beginning() -> str:
    """Where somebody begins who reads the help of poolctl itself."""
    return "\b\nTo begin with:\n" + "\n".join(f"  {line}" for line in BEGIN)
