"""Which lines of a log are wanted, read backwards and as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest

from poolctl.logs.line_filter import LineFilter, stated_level, text_after_level
from poolctl.logs.log_line import LogLine, stamp
from poolctl.logs.log_tail import Follower, tail

# Lines as the common loggers and servers print them, with the level that they mean.
REAL = [
    ("uvicorn", "INFO:     Application startup complete.", "info"),
    ("logging", "ERROR:root:it failed", "error"),
    ("logging, with a time", "2026-11-20 08:47:34,123 - shop.cart - ERROR - no stock", "error"),
    ("logging, in columns", "2026-11-20 08:47:34,123 shop.cart WARNING no stock", "warning"),
    ("Django", "ERROR 2026-11-20 08:47:34,123 views 7 140213 no stock", "error"),
    ("gunicorn", "[2026-11-20 08:47:34 +0000] [7] [ERROR] Worker (pid:8) was sent SIGKILL!", "error"),
    ("Celery", "[2026-11-20 08:47:34,123: ERROR/ForkPoolWorker-1] Task shop.pay raised unexpected", "error"),
    ("Celery beat", "[2026-11-20 08:47:34,123: INFO/MainProcess] beat: Starting...", "info"),
    (
        "dramatiq",
        "[2026-11-20 08:47:34,123] [PID 7] [MainThread] [dramatiq.MainProcess] [CRITICAL] no broker",
        "critical",
    ),
    ("huey", "[2026-11-20 08:47:34,123] ERROR:huey:Worker-1:Unhandled exception in task", "error"),
    ("Airflow", "[2026-11-20T08:47:34.123+0000] {dag.py:3} ERROR - it failed", "error"),
    ("Scrapy", "2026-11-20 08:47:34 [scrapy.core.scraper] ERROR: Spider error processing", "error"),
    ("loguru", "2026-11-20 08:47:34.123 | ERROR    | shop:buy:12 - no stock", "error"),
    ("structlog", "2026-11-20 08:47:34 [error    ] no stock                       order=7", "error"),
    ("Tornado", "[E 261120 08:47:34 web:1670] Uncaught exception GET /", "error"),
    ("Jupyter", "[W 2026-11-20 08:47:34.123 ServerApp] no password", "warning"),
    ("glog, klog", "E1120 08:47:34.123456       7 cart.go:3] no stock", "error"),
    ("klog", "W1120 08:47:34.123456       7 reflector.go:424] failed to list", "warning"),
    ("slog", "2026/11/20 08:47:34 ERROR no stock order=7", "error"),
    ("slog, text", 'time=2026-11-20T08:47:34.123Z level=ERROR msg="no stock" order=7', "error"),
    ("logrus", 'time="2026-11-20T08:47:34Z" level=warning msg="no stock" order=7', "warning"),
    (
        "logrus, terminal",
        "\x1b[31mERRO\x1b[0m[0012] no stock                                      order=7",
        "error",
    ),
    ("zap, console", '2026-11-20T08:47:34.123Z\tERROR\tshop/cart.go:3\tno stock\t{"order": 7}', "error"),
    ("zerolog, console", "8:47AM ERR no stock order=7", "error"),
    ("Traefik", "2026-11-20T08:47:34Z WRN No domain found in rule", "warning"),
    ("hclog", "2026-11-20T08:47:34.123Z [ERROR] core: failed to unseal", "error"),
    (
        "Prometheus",
        'ts=2026-11-20T08:47:34.123Z caller=main.go:3 level=error msg="Opening storage failed"',
        "error",
    ),
    ("log4j, logback", "08:47:34.123 [main] ERROR com.shop.Cart - no stock", "error"),
    (
        "Spring Boot",
        "2026-11-20T08:47:34.123Z  WARN 7 --- [shop] [nio-8080-exec-1] com.shop.Cart : no stock",
        "warning",
    ),
    ("java.util.logging", "SEVERE: no stock", "error"),
    (
        "Kafka",
        "[2026-11-20 08:47:34,123] ERROR Failed to clean up log (kafka.server.LogDirFailureChannel)",
        "error",
    ),
    (
        "Elasticsearch",
        "[2026-11-20T08:47:34,123][WARN ][o.e.b.BootstrapChecks  ] [node-1] max file descriptors",
        "warning",
    ),
    (
        "ZooKeeper",
        "2026-11-20 08:47:34,123 [myid:1] - ERROR [main:QuorumPeerMain@3] - Unexpected exception",
        "error",
    ),
    ("Serilog", "[08:47:34 ERR] no stock", "error"),
    ("Serilog", "[08:47:34 FTL] Host terminated unexpectedly", "critical"),
    ("NLog", "2026-11-20 08:47:34.1234|ERROR|Shop.Cart|no stock", "error"),
    (".NET", "fail: Shop.Cart[0]", "error"),
    (".NET", "warn: Microsoft.AspNetCore.HttpsPolicy[3]", "warning"),
    (".NET", "crit: Shop.Cart[0]", "critical"),
    ("env_logger", "[2026-11-20T08:47:34Z ERROR shop::cart] no stock", "error"),
    ("tracing", "2026-11-20T08:47:34.123456Z  WARN shop::cart: no stock order=7", "warning"),
    ("Ruby, Rails", "E, [2026-11-20T08:47:34.123456 #7] ERROR -- : no stock", "error"),
    ("Sidekiq", "2026-11-20T08:47:34.123Z pid=7 tid=abc class=PayJob jid=1f2e WARN: no stock", "warning"),
    ("Monolog, Laravel", '[2026-11-20 08:47:34] production.ERROR: no stock {"order":7} []', "error"),
    (
        "Monolog, Symfony",
        "[2026-11-20T08:47:34.123456+00:00] request.CRITICAL: Uncaught PHP Exception",
        "critical",
    ),
    ("PHP", "PHP Fatal error:  Uncaught Error: Call to undefined function pay()", "critical"),
    (
        "PHP",
        "[20-Nov-2026 08:47:34 UTC] PHP Warning:  Undefined variable $a in /app/a.php on line 3",
        "warning",
    ),
    ("PHP-FPM", "[20-Nov-2026 08:47:34] NOTICE: fpm is running, pid 7", "info"),
    ("winston", "error: no stock", "error"),
    ("winston", "2026-11-20T08:47:34.123Z [WARN]: no stock", "warning"),
    ("log4js", "[2026-11-20T08:47:34.123] [ERROR] default - no stock", "error"),
    ("pino-pretty", "[08:47:34.123] ERROR (7): no stock", "error"),
    ("npm", "npm ERR! code ELIFECYCLE", "error"),
    ("npm", "npm error code ENOENT", "error"),
    ("npm", "npm warn deprecated har-validator@5.1.5", "warning"),
    ("Elixir", "08:47:34.123 [error] GenServer Shop.Cart terminating", "error"),
    ("RabbitMQ", "2026-11-20 08:47:34.123456+00:00 [error] <0.7.0> no disk", "error"),
    ("Swift", "2026-11-20T08:47:34+0000 error shop : no stock", "error"),
    ("nginx", "2026/11/20 08:47:34 [error] 7#0: *1 open() failed", "error"),
    ("Apache", "[Fri Nov 20 08:47:34.123456 2026] [core:error] [pid 7:tid 1] AH00126: Invalid URI", "error"),
    ("HAProxy", "[WARNING]  (7) : Server web/a is DOWN", "warning"),
    ("HAProxy", "[ALERT]    (7) : Starting frontend web: cannot bind socket", "critical"),
    (
        "PostgreSQL",
        '2026-11-20 08:47:34.123 UTC [7] ERROR:  relation "a" does not exist at character 15',
        "error",
    ),
    (
        "PostgreSQL",
        "2026-11-20 08:47:34.123 CET [7] shop@shop FATAL:  password authentication failed",
        "critical",
    ),
    (
        "PostgreSQL",
        "2026-11-20 08:47:34.123 UTC [1] LOG:  database system is ready to accept connections",
        "info",
    ),
    ("MySQL", "2026-11-20T08:47:34.123456Z 7 [ERROR] [MY-010131] [Server] TCP/IP, --shared-memory", "error"),
    ("MySQL", "2026-11-20T08:47:34.123456Z 0 [Note] [MY-012366] [InnoDB] Using Linux native AIO", "info"),
    ("Redis", "7:M 20 Nov 2026 08:47:34.123 # WARNING Memory overcommit must be enabled!", "warning"),
    ("Redis", "7:M 20 Nov 2026 08:47:34.123 * Ready to accept connections tcp", "info"),
    ("syslog", "Nov 20 08:47:34 host shop[7]: ERROR no stock", "error"),
    ("sd-daemon", "<3>no stock", "error"),
    ("Go", "panic: runtime error: index out of range [3] with length 3", "critical"),
    ("Node", "Error: no stock", "error"),
    ("git", "fatal: not a git repository", "critical"),
    # JSON
    (
        "logging, JSON",
        '{"asctime": "2026-11-20 08:47:34", "levelname": "ERROR", "message": "no stock"}',
        "error",
    ),
    (
        "loguru, JSON",
        '{"text": "x", "record": {"level": {"name": "ERROR", "no": 40}, "message": "no", "time": {"timestamp": 1.5}}}',
        "error",
    ),
    ("structlog, JSON", '{"event": "no stock", "level": "warning"}', "warning"),
    ("pino", '{"level":40,"time":1763628454123,"pid":7,"hostname":"a","msg":"no stock"}', "warning"),
    ("pino without base", '{"level":30,"time":1763628454123,"msg":"hello"}', "info"),
    (
        "bunyan",
        '{"name":"shop","hostname":"a","pid":7,"level":50,"msg":"no stock","time":"2026-11-20T08:47:34Z","v":0}',
        "error",
    ),
    ("winston, JSON", '{"level":"error","message":"no stock"}', "error"),
    ("zap", '{"level":"dpanic","ts":1763628454.1,"msg":"no stock"}', "critical"),
    (
        "logstash",
        '{"@timestamp":"2026-11-20T08:47:34Z","@version":"1","message":"no","level":"ERROR","level_value":40000}',
        "error",
    ),
    ("ECS", '{"@timestamp":"2026-11-20T08:47:34Z","log.level":"error","message":"no stock"}', "error"),
    (
        "ECS, nested",
        '{"@timestamp":"2026-11-20T08:47:34Z","log":{"level":"warn","logger":"a"},"message":"no"}',
        "warning",
    ),
    (
        "OpenTelemetry",
        '{"body":{"stringValue":"no stock"},"severityNumber":17,"severityText":"ERROR"}',
        "error",
    ),
    ("OpenTelemetry", '{"body":"no stock","severity_number":13}', "warning"),
    ("Serilog, JSON", '{"@t":"2026-11-20T08:47:34Z","@mt":"no {a}","@l":"Fatal","a":3}', "critical"),
    ("Serilog, JSON", '{"@t":"2026-11-20T08:47:34Z","@mt":"hello"}', "info"),
    ("Serilog, JSON", '{"Timestamp":"2026-11-20T08:47:34Z","Level":"Error","MessageTemplate":"no"}', "error"),
    (".NET, JSON", '{"EventId":0,"LogLevel":"Error","Category":"Shop.Cart","Message":"no stock"}', "error"),
    (".NET, JSON", '{"EventId":0,"LogLevel":"Information","Category":"Shop","Message":"hello"}', "info"),
    (
        "tracing, JSON",
        '{"timestamp":"2026-11-20T08:47:34Z","level":"ERROR","fields":{"message":"no"},"target":"shop"}',
        "error",
    ),
    (
        "Monolog, JSON",
        '{"message":"no","context":{},"level":400,"level_name":"ERROR","channel":"shop"}',
        "error",
    ),
    (
        "Monolog, JSON",
        '{"message":"hello","context":{},"level":200,"level_name":"INFO","channel":"shop"}',
        "info",
    ),
    (
        "MongoDB",
        '{"t":{"$date":"2026-11-20T08:47:34Z"},"s":"E","c":"NETWORK","id":3,"ctx":"listener","msg":"no"}',
        "error",
    ),
    (
        "MongoDB",
        '{"t":{"$date":"2026-11-20T08:47:34Z"},"s":"D1","c":"NETWORK","id":3,"ctx":"a","msg":"no"}',
        "debug",
    ),
    ("GELF", '{"version":"1.1","host":"a","short_message":"no stock","level":3}', "error"),
    ("journald", '{"MESSAGE":"no stock","PRIORITY":"3"}', "error"),
    ("Google Cloud", '{"severity":"ERROR","message":"no stock"}', "error"),
]

# Lines in which a word of a level is a name, a number's noun, a path or part of a sentence.
ALIKE = [
    "GET /error 200",
    "0 errors",
    "    at warn (/app/log.js:3:5)",
    '127.0.0.1 - - [20/Nov/2026:08:47:34 +0000] "GET /error HTTP/1.1" 200 5 "-" "ERROR bot"',
    '127.0.0.1:4000 - "GET /logs?level=error HTTP/1.1" 200',
    "[08:47:34] Found 0 errors. Watching for file changes.",
    "08:47:34 GET /ERROR 200",
    "0 error found",
    "3 warning messages were read",
    "    0 Error(s)",
    "3 passed, 1 warning in 0.12s",
    "error_log = /var/log/php.log",
    "ERROR_LIMIT=3",
    "DEBUG=false",
    " * Debug mode: off",
    "debug mode is off",
    "SELECT * FROM ERROR WHERE id = 3",
    "state changed from ERROR to OK",
    "08:47:34 state changed from ERROR to OK",
    "Retrying after ERROR response",
    "Error handling is enabled",
    "error rate 0.1 %",
    "info@example.com signed up",
    "Information about the shop",
    "Critical path: 3 steps",
    "fatalities: 0",
    'alert("hello")',
    "trace-id: 4bf92f3577b34da6",
    'File "/app/error.py", line 3, in warn',
    "main.warn(0xc000012345)",
    "[errors] none",
    "Loaded plugins [error-pages] [warn]",
    "E2E tests passed",
    "WARN.txt was uploaded",
    "npm run error-page",
    "Filtering by level=error",
    "PHP Warning signs explained",
    "an error occurred",
    "<3 from all of us",
    "08:47:34 Error handling is enabled",
    "08:47:34 error rate 0.1 %",
    "2026-11-20 08:47:34 panic room booked",
    "        error: x",
    "[shop] state changed from ERROR to OK",
    '{"errors": 0, "message": "ERROR pages are on"}',
    '{"message": "hello", "log": {"levels": "error"}}',
]


@pytest.mark.parametrize(("logger", "line", "level"), REAL)
def test_level_of_each_logger_is_known(logger: str, line: str, level: str) -> None:
    assert stated_level(line) == level


@pytest.mark.parametrize("line", [*ALIKE, "", "x" * 200 + " ERROR "])
def test_line_that_only_looks_like_one_with_a_level_has_none(line: str) -> None:
    assert stated_level(line) == ""


@pytest.mark.parametrize(
    "line",
    [
        "[" * 5000,
        "a=b " * 2000,
        "2026-11-20 08:47:34 " + "A.b " * 2000,
        "1:11 " + "-" * 200,
        'a="' * 300,
        "[1:11]" * 99,
    ],
)
def test_line_that_fits_many_ways_is_read_in_no_time(line: str) -> None:
    began = process_time()
    stated_level(line)
    assert process_time() - began < 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("INFO:     Application startup complete.", "Application startup complete."), ("CRITICAL: no", "no"),
        ("\x1b[31mERROR\x1b[0m:    \x1b[1mno", "no"), ("ERROR:root:it failed", "ERROR:root:it failed"),
        ("Error: no", "Error: no"), ("ERROR no", "ERROR no"), ("INFO:", "INFO:"), ("HOST: a", "HOST: a"), ("", ""),
    ],
)  # fmt: skip
def test_level_before_a_message_is_no_part_of_it(text: str, message: str) -> None:
    assert text_after_level(text) == message


TRACEBACK = ["Traceback (most recent call last):", "  File a", "KeyError: 1", "", "During handling", "", "x"]


def lines(*texts: str, name: str = "web") -> list[LogLine]:
    return [LogLine(text, time=stamp(at + 1), name=name) for at, text in enumerate(texts)]


Reading = Callable[[LineFilter, list[LogLine]], list[str]]


def forwards(wanted: LineFilter, given: list[LogLine]) -> list[str]:
    return [line.text for each in given for line in wanted.filter_forwards([each])]


def backwards(wanted: LineFilter, given: list[LogLine]) -> list[str]:
    return [line.text for line in wanted.filter_backwards(reversed(given))][::-1]


@pytest.mark.parametrize("read", [forwards, backwards])
class TestBothWays:
    def test_traceback_belongs_to_the_line_before_it(self, read: Reading) -> None:
        given = lines("CRITICAL it burns", *TRACEBACK[:4], "INFO: on", "plain")
        assert read(LineFilter(least="critical"), given) == ["CRITICAL it burns", *TRACEBACK[:4]]

    def test_traceback_is_at_least_an_error(self, read: Reading) -> None:
        given = lines("INFO: a request", *TRACEBACK[:3], "plain")
        assert read(LineFilter(least="error"), given) == TRACEBACK[:3]

    def test_exception_of_a_traceback_without_frames_belongs_to_it(self, read: Reading) -> None:
        given = lines("Traceback (most recent call last):", "ValueError: no", "plain")
        assert read(LineFilter(least="error"), given) == [
            "Traceback (most recent call last):",
            "ValueError: no",
        ]

    def test_each_line_has_the_level_that_is_known(self, read: Reading) -> None:
        group = [
            "  + Exception Group Traceback (most recent call last):",
            "  |   File a",
            "ExceptionGroup: no",
        ]
        given = lines("plain", *group, "DEBUG x", "  more", '{"level": "verbose", "msg": ""}', "plain")
        assert len(read(LineFilter(levels=True), given)) == 8
        assert [line.level for line in given] == ["", *["error"] * 3, "debug", "debug", "debug", ""]

    def test_line_without_a_level_does_not_pass_a_level(self, read: Reading) -> None:
        assert read(LineFilter(least="trace"), lines("plain", "DEBUG x", "plain")) == ["DEBUG x"]

    def test_time_and_text_narrow_too(self, read: Reading) -> None:
        wanted = LineFilter(until=stamp(2), matches=lambda text: "a" in text)
        assert read(wanted, lines("a", "b a", "a")) == ["a", "b a"]


def test_colours_are_no_part_of_the_searched_text() -> None:
    wanted = LineFilter(matches=lambda text: text == "red")
    assert forwards(wanted, lines("\x1b[31mred\x1b[0m")) == ["\x1b[31mred\x1b[0m"]


def test_lines_without_a_time_have_that_of_the_line_before_them() -> None:
    given = [LogLine("a", time=stamp(1)), LogLine("b"), LogLine("c", time=stamp(3)), LogLine("d")]
    assert backwards(LineFilter(until=stamp(2)), given) == ["a", "b"]


def test_output_without_levels_is_read_in_parts_of_bounded_size() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while taken < 10_000:
            taken += 1
            yield LogLine("plain", time=stamp(1)) if taken > 5000 else LogLine("ERROR x", time=stamp(1))

    found = LineFilter(least="error").filter_backwards(endless())  # type: ignore[arg-type]
    assert next(found).text == "ERROR x"
    assert taken == 1
    assert len(list(found)) == 4999


def test_follower_passes_what_is_wanted_of_the_old_and_the_new_lines(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_text(f"{stamp(1)} ERROR one\n{stamp(2)} INFO two\n")
    follower = Follower({"web": str(path)}, lines=5, wanted=LineFilter(least="error"))
    with path.open("a") as file:
        file.write(f"no time\n{stamp(3)} ERROR three\n{stamp(4)} INFO four\n  more\n")
    assert [line.text for line in [*follower.first, *follower.read()]] == ["ERROR one", "ERROR three"]
    follower.close()
    assert [line.text for line in tail(str(path), 1, wanted=LineFilter(least="error"))] == ["ERROR three"]


@pytest.mark.parametrize("read", [forwards, backwards])
def test_without_a_wish_every_line_is_shown_whenever_it_was_written(read: Reading) -> None:
    given = [LogLine("long ago", time=stamp(0), name="web"), LogLine("far off", time=stamp(9e9), name="web")]
    given.append(LogLine("without a time", time="", name="web"))
    assert read(LineFilter(), given) == ["long ago", "far off", "without a time"]
    assert read(LineFilter(until=given[0].time), given[:2]) == ["long ago"]
