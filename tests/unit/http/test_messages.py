"""Messages as they are written and read; httptools and h11 read each canonical head as this parser does."""

from __future__ import annotations

import random
import re
from time import thread_time
from typing import Any

import h11
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolctl.http import messages
from poolctl.http.messages import (
    CHUNKED,
    MOST_CHUNKS_A_SECOND,
    MOST_CHUNKS_AT_ONCE,
    MOST_FIELDS,
    BadMessage,
    ChunkedBodyReader,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
    canonical_head,
    chunk,
    request_head,
    response_head,
)
from tests.growth import grows_too_fast, repeated
from tests.http_corpus import CHUNKED as CHUNKED_HEAD
from tests.http_corpus import REQUESTS
from tests.steps import steps_of

GET = b"GET / HTTP/1.1\r\n"
HOST = b"Host: a\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
BROWSER = (
    b"GET /v1/users?id=3 HTTP/1.1\r\nHost: users.example.com:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    b"Accept: text/html,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, br\r\n"
    b"Connection: keep-alive\r\nCookie: a=b; c=d\r\nUpgrade-Insecure-Requests: 1\r\n\r\n"
)

CANONICAL = {
    "browser": BROWSER,
    "shortest": GET + HOST + b"\r\n",
    "old version without a host": b"GET / HTTP/1.0\r\n\r\n",
    "old version kept alive": b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "names in capitals": GET + b"HOST: a\r\nCONNECTION: CLOSE\r\n\r\n",
    "tabs within and around a value": GET + HOST + b"X: \ta\tb \t\r\n\r\n",
    "tab before a decisive value": GET + b"Host:\ta\r\n\r\n",
    "empty value": GET + HOST + b"X:\r\n\r\n",
    "bytes above ASCII": GET + HOST + b"X: \xc3\xbc\xff\r\n\r\n",
    "name with an underscore": GET + HOST + b"Content_Length: 5\r\n\r\n",
    "a name that begins as a decisive one": GET + HOST + b"Hostess: b\r\nTransfer-Encodings: c\r\n\r\n",
    "body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
    "length with a leading zero": b"PUT / HTTP/1.1\r\nHost: a\r\ncontent-length: 003\r\n\r\n",
    "chunks": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
    "expectation": b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "double slash": b"GET //b/c?//d HTTP/1.1\r\nHost: a\r\n\r\n",
    "every character of a target": b"GET /!\"$%&'()*+,-.:;<=>@[\\]^_`{|}~?? HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty host": GET + b"Host:\r\n\r\n",
    "host of IPv6": GET + b"Host: [::1]:80\r\n\r\n",
    "upgrade": GET + HOST + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "upgrade that Connection does not name": GET + HOST + b"Upgrade: h2c\r\n\r\n",
}
# Valid ones among them are for a full parser.
OTHER = {
    "two hosts": GET + HOST + HOST + b"\r\n",
    "two hosts, differently spelled": GET + HOST + b"hOST: a\r\n\r\n",
    "no host": GET + b"\r\n",
    "host with a space behind": GET + b"Host: a \r\n\r\n",
    "host with a path": GET + b"Host: a/b\r\n\r\n",
    "both framings": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "list of lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n",
    "the same length twice": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "empty length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    "length with a space behind": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 \r\n\r\n",
    "length of 16 digits": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0000000000000005\r\n\r\n",
    "identity": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "a bare LF": GET + b"Host: a\nX: b\r\n\r\n",
    "a bare CR": GET + HOST + b"X: b\rc\r\n\r\n",
    "folded line": GET + HOST + b"X: b\r\n c\r\n\r\n",
    "folded first line": GET + b" Host: a\r\n\r\n",
    "space before the colon": GET + b"Host : a\r\n\r\n",
    "empty name": GET + HOST + b": b\r\n\r\n",
    "NUL": GET + HOST + b"X: \0\r\n\r\n",
    "other control": GET + HOST + b"X: \x01\r\n\r\n",
    "empty line before it": b"\r\n" + GET + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    "absolute form": b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form with another host": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk with another method": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk with a path": b"OPTIONS */a HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes above ASCII in the target": b"GET /\xc3\xbc HTTP/1.1\r\nHost: a\r\n\r\n",
    "other expectation": GET + HOST + b"Expect: 200-ok\r\n\r\n",
    "Proxy-Connection": GET + HOST + b"Proxy-Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "options with a tab": GET + HOST + b"Connection: close,\tupgrade\r\n\r\n",
    "empty option": GET + HOST + b"Connection: close,\r\n\r\n",
    "empty version of a protocol": GET + HOST + b"Connection: upgrade\r\nUpgrade: a/\r\n\r\n",
    "field without a colon": GET + HOST + b"X\r\n\r\n",
    "two Connections": GET + HOST + b"Connection: close\r\nConnection: upgrade\r\n\r\n",
    "upgrade with a body": GET + HOST + b"Connection: upgrade\r\nUpgrade: a\r\nContent-Length: 5\r\n\r\n",
    "list of protocols": GET + HOST + b"Connection: upgrade\r\nUpgrade: a, b\r\n\r\n",
}


@pytest.mark.parametrize("head", CANONICAL.values(), ids=CANONICAL)
def test_canonical_head_is_read_as_both_parsers_read_it(head: bytes) -> None:
    found = canonical_head(head + NEXT)
    assert found is not None
    assert found.end == len(head)
    assert_read_alike(head, found)


@pytest.mark.parametrize("head", OTHER.values(), ids=OTHER)
def test_head_in_another_form_is_not_canonical(head: bytes) -> None:
    assert canonical_head(head) is None
    assert not RequestHead.is_incomplete_but_valid(head)


@pytest.mark.parametrize(
    "case", [case for case in REQUESTS if b"\r\n\r\n" in case.data], ids=lambda case: case.name
)
def test_canonical_head_is_one_that_a_strict_server_accepts(case: Any) -> None:
    found = canonical_head(case.data)
    if found is not None:
        # What follows the head, and so may be malformed after a canonical one, is the body.
        assert case.status == 200 or found.body
        assert_read_alike(case.data[: found.end], found)


def test_canonical_head_tells_what_decides_about_the_connection() -> None:
    head = canonical_head(BROWSER)
    assert head is not None
    assert (head.method, head.target, head.path) == (b"GET", b"/v1/users?id=3", b"/v1/users")
    assert (head.host, head.end, head.body) == (b"users.example.com:8080", len(BROWSER), 0)
    assert (head.http_1_1, head.keep_alive, head.upgrade, head.expects_continue) == (True, True, b"", False)
    parsed = {name: canonical_head(head) for name, head in CANONICAL.items()}
    assert {name for name, head in parsed.items() if head and not head.keep_alive} == {
        "old version without a host", "names in capitals",
    }  # fmt: skip
    assert {name for name, head in parsed.items() if head and head.upgrade} == {"upgrade"}
    assert {name for name, head in parsed.items() if head and head.expects_continue} == {"expectation"}
    assert {name: head.body for name, head in parsed.items() if head and head.body} == {
        "body": 3, "length with a leading zero": 3, "expectation": 3, "chunks": CHUNKED,
    }  # fmt: skip


def test_beginning_of_a_head_is_incomplete_wherever_it_is_cut() -> None:
    for head in CANONICAL.values():
        for end in range(len(head)):
            assert canonical_head(head[:end]) is None
            assert RequestHead.is_incomplete_but_valid(head[:end])
            assert RequestHead.is_incomplete_but_valid(head[:end], max(0, end - 1))
            assert not RequestHead.is_incomplete_but_valid(head, end)
        assert not RequestHead.is_incomplete_but_valid(head)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01", b"GET / HTTP/1.1\n", b"GET /\r", b"\r", b"\n", b"GET / HTTP/1.1\r\nX: \0"]
)
def test_beginning_that_no_more_bytes_can_make_valid_is_not_incomplete(data: bytes) -> None:
    assert RequestHead.is_incomplete_but_valid(data) == (data in (b"GET /\r", b"\r"))  # the LF may still come
    assert not RequestHead.is_incomplete_but_valid(data + b"a")
    assert not RequestHead.is_incomplete_but_valid(data + b"a", len(data))


@pytest.mark.slow
def test_mutated_head_that_is_canonical_is_read_alike_by_both_parsers() -> None:
    chance = random.Random(20)
    accepted = sum(accepted_and_read_alike(mutated(chance)) for _ in range(6000))
    assert accepted > 600


@pytest.mark.heavy_variants
@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        b"a:\r\n",
        b"a",
        b"a: ",
        b":",
        b"Host: a\r\n",
        b"c: d\r\n",
        b"Connection: a,",
        b", a",
        b"-",
        b"\t",
        b"H",
        b"/",
        b"?",
    ],
)
def test_long_head_takes_linear_time(part: bytes) -> None:
    """Sixteen times the length takes sixteen times as long, and 256 times as long when the time is quadratic."""
    beginnings = (b"", b"GET /", GET, GET + HOST, GET + HOST + b"X: ", GET + HOST + b"Connection: a")

    def seconds(count: int) -> float:
        return min(sum(map(parsing_seconds, [each + part * count for each in beginnings])) for _ in range(5))

    assert seconds(16_000) < 100 * seconds(1_000)


def parsing_seconds(data: bytes) -> float:
    began = thread_time()
    canonical_head(data + b"\r\n\r\n")
    canonical_head(data)
    RequestHead.is_incomplete_but_valid(data)
    return thread_time() - began


def mutated(chance: random.Random) -> bytes:
    """A head of the tables, of which pieces are exchanged, removed, doubled, or bytes changed."""
    tables = [*CANONICAL.values(), *OTHER.values()]
    lines = chance.choice([*CANONICAL.values()]).split(b"\r\n")
    for _ in range(chance.randint(0, 2)):
        other = chance.choice(tables).split(b"\r\n")
        lines.insert(chance.randint(0, len(lines)), chance.choice(other))
    head = bytearray(b"\r\n".join(lines))
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        at = chance.randrange(len(head))
        piece = bytes(
            [
                chance.choice(b"\t\n\r \0,:;/?#*=HCT\x7f\x80\xff_09az")
                if chance.random() < 0.8
                else chance.randrange(256)
            ]
        )
        head[at : at + chance.randint(0, 2)] = piece * chance.randint(0, 2)
    return bytes(head)


def accepted_and_read_alike(head: bytes) -> bool:
    found = canonical_head(head)
    if found is not None:
        assert_read_alike(head[: found.end], found)
    return found is not None


def assert_read_alike(head: bytes, found: RequestHead) -> None:
    """Both parsers read this head, a body of that length and the next head as three such things."""
    body = (
        b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        if found.body == CHUNKED
        else b"abc"[: found.body].ljust(min(found.body, 500), b".")
    )
    wanted = (found.method, found.target, found.path, found.host, b"abc" if found.body == CHUNKED else body)
    if found.body > len(body):
        wanted, body = (*wanted[:4], body), body  # its end is not to be seen
    for read in (read_by_httptools, read_by_h11):
        messages = read(head + body + (NEXT if found.body <= len(body) and found.keep_alive else b""))
        assert messages[0] == wanted, (read, head)
        if found.body <= len(body) and found.keep_alive and found.http_1_1:
            assert found.upgrade or messages[1] == (b"GET", b"/next", b"/next", b"next", b""), (read, head)


class Messages:
    """The messages that httptools finds, by uvicorn's use of it."""

    def __init__(self) -> None:
        self.all: list[list[bytes]] = []
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.all.append([b"", b"", b"", b"", b""])

    def on_url(self, url: bytes) -> None:
        self.all[-1][1] += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self.all[-1][3] += value

    def on_headers_complete(self) -> None:
        self.all[-1][0] = self.parser.get_method()
        self.all[-1][2] = httptools.parse_url(self.all[-1][1]).path

    def on_body(self, body: bytes) -> None:
        self.all[-1][4] += body


def read_by_httptools(data: bytes) -> list[tuple[bytes, ...]]:
    messages = Messages()
    try:
        messages.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    return [tuple(each) for each in messages.all]


def read_by_h11(data: bytes) -> list[tuple[bytes, ...]]:
    connection = h11.Connection(h11.SERVER, 65536)
    connection.receive_data(data)
    messages: list[list[bytes]] = []
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            target = event.target
            host = b"".join(value for name, value in event.headers if name == b"host")
            messages.append([event.method, target, target.partition(b"?")[0], host, b""])
        elif isinstance(event, h11.Data):
            messages[-1][4] += event.data
        elif isinstance(event, h11.EndOfMessage):
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                break
            connection.start_next_cycle()
        else:
            break
    return [tuple(each) for each in messages]


def test_request_head_is_one_that_the_reader_understands() -> None:
    reader = RequestReader()
    assert reader.feed(request_head("GET", "/a?b=c", [("Host", "x"), ("X-Name", "ü\tb")]))
    assert reader.head is not None
    assert (reader.head.method, reader.head.target, reader.head.path) == (b"GET", b"/a?b=c", b"/a")
    assert (reader.head.get(b"host"), reader.head.get(b"x-name"), reader.head.get(b"y")) == (
        b"x",
        "ü\tb".encode(),
        b"",
    )


@pytest.mark.parametrize(
    ("method", "target", "fields"),
    [
        ("GET /\r\nX:", "/", []),
        ("", "/", []),
        ("GET", "/a b", []),
        ("GET", "/\r\nX: y", []),
        ("GET", "/ü", []),
        ("GET", "", []),
        ("GET", "/", [("X", "a\r\nY: b")]),
        ("GET", "/", [("X", "a\nb")]),
        ("GET", "/", [("X", "a\0b")]),
        ("GET", "/", [("X: y\r\nZ", "a")]),
        ("GET", "/", [("", "a")]),
        ("GET", "/", [("X ", "a")]),
    ],
)
def test_value_that_would_break_its_line_is_refused(
    method: str, target: str, fields: list[tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=r"request|header"):
        request_head(method, target, fields)


@pytest.mark.parametrize(
    "line",
    """200 OK
    400 Bad Request
    401 Unauthorized
    403 Forbidden
    404 Not Found
    405 Method Not Allowed
    408 Request Timeout
    413 Content Too Large
    431 Request Header Fields Too Large
    501 Not Implemented
    503 Service Unavailable
    505 HTTP Version Not Supported""".splitlines(),
)
def test_response_says_its_status_in_words(line: str) -> None:
    status, _, phrase = line.strip().partition(" ")
    assert response_head(int(status), []) == f"HTTP/1.1 {status} {phrase}\r\n\r\n".encode()


def test_response_head_and_chunks() -> None:
    assert response_head(299, [("a", "b")]) == b"HTTP/1.1 299 \r\na: b\r\n\r\n"
    assert (chunk(b"x" * 17)[:4], chunk(b"")) == (b"11\r\n", b"")


TINY = b"1\r\na\r\n"
SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"000%x"])
EXTENSIONS = st.sampled_from([b"", b"", b"", b";a=b", b' ;a="b c"', b";"])
CHUNK = st.tuples(st.binary(min_size=1, max_size=40), SIZES, EXTENSIONS)
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"Content-Length: 5\r\nX-Sum: 1\r\n"])


def fed(body: ChunkedBodyReader, data: bytes, cuts: list[int], most: int = 0) -> bytes:
    """What the body passes on of the data, which arrives in pieces; it reads so many chunks at once."""
    passed, begin = b"", 0
    for end in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        piece = data[begin:end]
        if body.done:
            body.rest += piece
            piece = b""
        while piece:
            given_out = bytes(body.feed(piece, most_chunks=most))
            passed += given_out
            piece = b"" if body.done else body.rest
        begin = end
    return passed


def by_h11(chunks: bytes) -> tuple[bytes, bytes]:
    """The data and the bytes behind it, as h11 reads a body in chunks."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    data = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        data += bytes(event.data) if isinstance(event, h11.Data) else b""
    return data, parser.trailing_data[0]


@given(
    st.lists(CHUNK, max_size=8), TRAILERS, st.lists(st.integers(0, 400), max_size=6), st.binary(max_size=9)
)
@example([(b"a", b"%x", b"")], b"", [], b"")
@example([(b"a", b"%x", b"")], b"", [4, 5, 6, 7, 8, 9, 10], b"GET")
def test_chunks_pass_on_canonically_however_they_are_split(
    chunks: list[tuple[bytes, bytes, bytes]], trailers: bytes, cuts: list[int], rest: bytes
) -> None:
    sent = b"".join(size % len(data) + more + b"\r\n" + data + b"\r\n" for data, size, more in chunks)
    sent += b"0\r\n" + trailers + b"\r\n" + rest
    data = b"".join(each[0] for each in chunks)
    body, decoded, in_turns = ChunkedBodyReader(), ChunkedBodyReader(decode=True), ChunkedBodyReader()
    passed = fed(body, sent, cuts)
    assert by_h11(passed) == (data, b"")
    assert re.fullmatch(rb"(?:[1-9a-fA-F][0-9a-fA-F]*\r\n(?s:.*)\r\n)?0\r\n(?:[AX].*\r\n)?\r\n", passed)
    assert fed(decoded, sent, cuts) == data
    assert fed(in_turns, sent, cuts, most=1) == passed
    for each in (body, decoded, in_turns):
        assert each.done
        assert (each.rest, each.size) == (rest, len(data))
        assert b"content-length" not in each.trailers.lower()
        assert (b"X-Sum: 1\r\n" in each.trailers) == (b"X-Sum" in trailers)


BAD_CHUNKS = [case for case in REQUESTS if case.status == 400 and case.data.startswith(CHUNKED_HEAD)]


@pytest.mark.parametrize("case", BAD_CHUNKS, ids=lambda case: case.name)
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_malformed_chunks_are_refused_before_they_are_passed_on(case: object, step: int) -> None:
    data = case.data[len(CHUNKED_HEAD) :]  # type: ignore[attr-defined]
    body = ChunkedBodyReader()
    with pytest.raises(BadMessage):
        fed(body, data, list(range(0, len(data), step)))


def test_extensions_and_trailers_are_bounded() -> None:
    with pytest.raises(BadMessage):
        ChunkedBodyReader().feed((b"1;" + b"x" * 4000 + b"\r\na\r\n") * 20)
    with pytest.raises(BadMessage):
        ChunkedBodyReader().feed(b"0\r\n" + b"a: b\r\n" * 4000)
    body = ChunkedBodyReader()
    body.feed(b"0\r\n" + b"a: b\r\n" * MOST_FIELDS + b"\r\n")
    assert body.done
    with pytest.raises(BadMessage):
        ChunkedBodyReader().feed(b"0\r\n" + b"a: b\r\n" * (MOST_FIELDS + 1) + b"\r\n")
    with pytest.raises(BadMessage):
        ChunkedBodyReader().feed(b"1;" + b"x" * 5000)


def test_extensions_of_a_chunk_and_of_all_chunks_may_be_as_long_as_their_limits() -> None:
    extended = b"1;" + b"x" * 4093 + b"\r\na\r\n"  # 4 KiB after the size
    body = ChunkedBodyReader()
    assert body.feed(extended * 16) == TINY * 16  # 64 KiB
    with pytest.raises(BadMessage, match="too many extensions of chunks"):
        body.feed(b"01\r\na\r\n")
    with pytest.raises(BadMessage, match="too many extensions of chunks"):
        ChunkedBodyReader().feed(extended.replace(b"x", b"xx", 1))


@pytest.mark.parametrize("start", [b"1;" + b"x" * 4094, b"0" * 15, b"1 ;a", b"1\r"])
def test_line_of_a_chunk_is_refused_as_soon_as_it_cannot_become_valid(start: bytes) -> None:
    assert ChunkedBodyReader().feed(start) == b""
    body = ChunkedBodyReader()
    with pytest.raises(BadMessage, match="a chunk without a valid size"):
        body.feed(start + (b"0" if start[-1:] in b"0\r" else b"x" if len(start) > 9 else b"\0"))


@pytest.mark.parametrize("before", [b"", b"2328\r\n" + b"x" * 9000 + b"\r\n"])
@pytest.mark.parametrize("whole", [False, True])
def test_trailers_may_be_as_long_as_their_limit(before: bytes, whole: bool) -> None:
    trailers = b"a: " + b"x" * (8 * 1024 - 5) + b"\r\n"
    body, refused = ChunkedBodyReader(), ChunkedBodyReader()
    sent = body.feed(before + b"0\r\n" + trailers + (b"\r\n" if whole else b""))
    assert (
        bytes(sent) + (b"" if whole else bytes(body.feed(b"\r\n"))) == before + b"0\r\n" + trailers + b"\r\n"
    )
    assert (body.done, body.trailers, body.rest) == (True, trailers, b"")
    with pytest.raises(BadMessage, match="malformed trailers"):
        refused.feed(before + b"0\r\nb" + trailers + (b"\r\n" if whole else b""))


def test_chunks_are_read_from_an_offset() -> None:
    body = ChunkedBodyReader()
    assert (body.done, body.size, body.rest, body.trailers) == (False, 0, b"", b"")
    assert body.feed(b"GET1\r\na\r\n1", 3) == TINY
    assert body.feed(b"GET\r\nb\r\n0\r\n\r\nNEXT", 3) == b"1\r\nb\r\n0\r\n\r\n"
    assert (body.done, body.size, body.rest, body.trailers) == (True, 2, b"NEXT", b"")


@pytest.mark.parametrize("line", [b"a", b"a:", b"a :b", b" a: b", b": b", b"a: \x00"])
def test_trailers_are_whole_lines(line: bytes) -> None:
    body = ChunkedBodyReader()
    sent = b"0\r\nX: y\r\n" + line + b"\r\n\r\n"
    if line == b"a:":
        assert body.feed(sent) == sent
    else:
        with pytest.raises(BadMessage):
            body.feed(sent)


@pytest.mark.slow
def test_chunks_above_the_rate_of_a_second_are_refused_whatever_their_size() -> None:
    now = 100.0
    body = ChunkedBodyReader(clock=lambda: now)
    for _ in range(2):
        body.feed(TINY * (MOST_CHUNKS_A_SECOND - 1))
        body.feed(TINY)
        now += 1.0
    body.feed(TINY * MOST_CHUNKS_A_SECOND)
    now += 0.9
    with pytest.raises(BadMessage, match="20000 chunks a second") as refused:
        body.feed(TINY)
    assert refused.value.status == 400
    last = ChunkedBodyReader(clock=lambda: now)
    last.feed(TINY * MOST_CHUNKS_A_SECOND)
    with pytest.raises(BadMessage):
        last.feed(b"0\r\n\r\n")
    together = ChunkedBodyReader(clock=lambda: now)
    together.feed(TINY * (MOST_CHUNKS_A_SECOND - 1) + b"0\r\n\r\n")
    assert together.done
    unlimited = ChunkedBodyReader(most_a_second=0, clock=lambda: now)
    unlimited.feed(TINY * (2 * MOST_CHUNKS_A_SECOND))
    assert unlimited.size == 2 * MOST_CHUNKS_A_SECOND


@pytest.mark.parametrize("chunk", [TINY, b"1;a=b\r\na\r\n", b"01\r\na\r\n"])
def test_steps_of_a_turn_do_not_grow_with_what_was_read(chunk: bytes) -> None:
    def turn(count: int) -> int:
        return steps_of(lambda: ChunkedBodyReader().feed(chunk * count, most_chunks=MOST_CHUNKS_AT_ONCE))

    turn(1)  # compiles the expressions
    assert turn(40_000) <= turn(MOST_CHUNKS_AT_ONCE) + 20 < 60 * MOST_CHUNKS_AT_ONCE


@pytest.mark.slow
def test_steps_of_a_refused_burst_are_those_of_a_second() -> None:
    def burst() -> None:
        with pytest.raises(BadMessage):
            ChunkedBodyReader(clock=lambda: 0.0).feed(TINY * 200_000)

    assert steps_of(burst) < 40 * MOST_CHUNKS_A_SECOND


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED_RESPONSE = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: 100\r\n\r\n" + b"x" * 50,
        OK + b"\r\n" + b"x" * 50,
        CHUNKED_RESPONSE + b"64\r\n" + b"x" * 50,
        CHUNKED_RESPONSE + b"6\r\nxxxxxx\r\n" * 3,
    ],
)
def test_beginning_of_a_body_that_is_too_long_is_kept(data: bytes) -> None:
    reader = ResponseReader(max_body_bytes=10)
    assert reader.feed(data)
    assert (reader.body, reader.reusable) == (b"x" * 10, False)


def test_limit_of_chunks_a_second_is_for_bodies_with_a_limit_in_bytes() -> None:
    chunks = CHUNKED_RESPONSE + b"1\r\na\r\n" * (MOST_CHUNKS_A_SECOND + 1)
    with pytest.raises(BadMessage, match="chunks a second"):
        ResponseReader(max_body_bytes=1_000_000).feed(chunks)
    unlimited = ResponseReader()
    assert not unlimited.feed(chunks)
    assert len(unlimited.take_body()) == MOST_CHUNKS_A_SECOND + 1


def test_body_is_taken_away_as_it_comes() -> None:
    reader = ResponseReader()
    taken = []
    for piece in (
        CHUNKED_RESPONSE[:-1],
        CHUNKED_RESPONSE[-1:],
        b"3\r\na",
        b"bc\r\n2",
        b"\r\nde\r\n0\r\n\r",
        b"\n",
    ):
        assert not reader.complete
        reader.feed(piece)
        taken.append(reader.take_body())
    assert (taken, reader.complete, reader.reusable) == ([b"", b"", b"a", b"bc", b"de", b""], True, True)


def test_fields_are_found_by_name_as_they_were_sent() -> None:
    reader = ResponseReader()
    reader.feed(OK + b"X-A:  One \r\nx-b: two\r\nx-a: Three\r\ncontent-length: 0\r\n\r\n")
    assert reader.head is not None
    assert reader.head.values(b"x-a") == [b"One", b"Three"]
    assert (reader.head.get(b"x-a"), reader.head.get(b"x-b"), reader.head.get(b"x")) == (
        b"One, Three",
        b"two",
        b"",
    )


def a_request(*lines: bytes, start: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: a", *lines, b"", b""))


@pytest.mark.parametrize(
    ("data", "status", "why"),
    [
        (b"GET / HTTP/2.0\r\n", 505, "the version is not HTTP/1.1"),
        (b"\x00", 400, "a control character, or a line that does not end with CRLF"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "a control character, or a line that does not end with CRLF"),
        (a_request(b"no colon"), 400, "malformed header field"),
        (a_request(b"Host: b"), 400, "more than one host"),
        (a_request(b"Content-Length: 1", b"content-length: 1"), 400, "more than one content-length"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "no host"),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "host is not a host name"),
        (b"GET /\r\n", 400, "no request line"),
        (a_request(b"Connection: a" + b",a" * 64), 431, "more than 64 options of connection"),
        (a_request(b"Content-Length: x"), 400, "content-length is not a number"),
        (a_request(b"Content-Length: +1"), 400, "content-length is not a number"),
        (a_request(b"Transfer-Encoding: gzip"), 501, "transfer-encoding is not chunked"),
        (
            a_request(b"Content-Length: 1", b"Transfer-Encoding: chunked"),
            400,
            "both content-length and transfer-encoding",
        ),
        (
            a_request(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"),
            400,
            "transfer-encoding in HTTP/1.0",
        ),
    ],
)
def test_refused_request_says_why(data: bytes, status: int, why: str) -> None:
    with pytest.raises(BadMessage) as refused:
        RequestReader().feed(data)
    assert (str(refused.value), refused.value.status) == (why, status)


def test_head_may_be_as_large_as_its_limit() -> None:
    head = a_request(b"X: " + b"x" * 50)
    for step in (1, 7, len(head)):
        for limit, allowed in ((len(head), True), (len(head) - 1, False)):
            reader = RequestReader(max_head_bytes=limit)
            pieces = [head[at : at + step] for at in range(0, len(head), step)]
            if allowed:
                assert [reader.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
            else:
                with pytest.raises(BadMessage, match="the head is too large") as refused:
                    [reader.feed(piece) for piece in pieces]
                assert refused.value.status == 431


def test_head_has_64_kibibytes_if_its_reader_sets_no_limit() -> None:
    head = a_request(b"X: ")
    fits = a_request(b"X: " + b"x" * (64 * 1024 - len(head)))
    assert RequestReader().feed(fits)
    with pytest.raises(BadMessage, match="the head is too large"):
        RequestReader().feed(fits.replace(b"X: ", b"X: y"))
    too_large = fits[:-4] + b"x" * 5
    with pytest.raises(BadMessage, match="the head is too large"):
        RequestReader().feed(too_large)


def test_head_with_as_many_options_as_allowed_is_read() -> None:
    reader = RequestReader()
    assert reader.feed(a_request(b"Connection: close" + b",a" * 63))
    assert reader.head is not None
    assert (reader.head.options, reader.head.keep_alive) == (frozenset((b"a", b"close")), False)


def test_number_of_fields_is_bounded() -> None:
    assert MOST_FIELDS == 100
    fields = [b"X: y"] * (MOST_FIELDS - 1)
    assert RequestReader().feed(a_request(*fields))
    with pytest.raises(BadMessage, match=f"more than {MOST_FIELDS} fields") as refused:
        RequestReader().feed(a_request(*fields, b"X: y"))
    assert refused.value.status == 431
    answer = b"\r\n".join([b"HTTP/1.1 204 No Content", b"X: y", *fields, b"", b""])
    assert ResponseReader().feed(answer)
    with pytest.raises(BadMessage, match=f"more than {MOST_FIELDS} fields"):
        ResponseReader().feed(answer.replace(b"X: y", b"Y: z\r\nX: y", 1))


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize(("limit", "allowed"), [(None, True), (5, True), (4, False)])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_body_of_a_request_may_be_as_large_as_its_limit(
    framing: bytes, limit: int | None, allowed: bool, step: int
) -> None:
    body = b"hello" if b"Length" in framing else b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    data = a_request(framing) + body
    reader = RequestReader(max_body_bytes=limit)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    if not allowed:
        with pytest.raises(BadMessage, match="the body is too large") as refused:
            [reader.feed(piece) for piece in pieces]
        assert refused.value.status == 413
        return
    assert [reader.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (reader.body, reader.rest, reader.complete) == (b"hello", b"", True)
    assert (reader.take_body(), reader.body) == (b"hello", b"")


@pytest.mark.parametrize("step", [1, 4, 1000])
def test_bytes_after_a_message_are_its_rest(step: int) -> None:
    data = a_request(b"Content-Length: 2") + b"ab" + NEXT
    reader, rest = RequestReader(), data
    assert not reader.started
    while not reader.complete:
        piece, rest = rest[:step], rest[step:]
        assert reader.feed(piece) is reader.complete
        assert reader.started
    assert (reader.body, reader.rest + rest) == (b"ab", NEXT)
    assert (reader.head is not None, repr(reader.head)) == (True, "<RequestHead POST />")


@pytest.mark.parametrize(
    ("head", "body", "length", "complete_at_end", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ab", 2, True, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"ab", 3, False, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", 0, True, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n", b"ab", 2, True, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", b"ab", 2, True, False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n", b"ab", 2, True, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"ab", -1, True, False),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", b"", -1, True, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b"", 7, True, True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ab", 2, True, True),
    ],
)
def test_response_is_read_to_its_end_and_says_whether_the_connection_can_be_used_again(
    head: bytes, body: bytes, length: int, complete_at_end: bool, reusable: bool
) -> None:
    for step in (1, 1000):
        reader = ResponseReader()
        assert (reader.status, reader.head, reader.started, reader.reusable) == (0, None, False, False)
        data = head + body
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
        assert reader.body == body
        assert reader.record_disconnect() is complete_at_end
        assert reader.reusable is reusable
        assert reader.head is not None
        assert (reader.status, reader.head.length) == (reader.head.status, length)
        assert repr(reader.head) == f"<ResponseHead {reader.status}>"


def test_folded_field_of_a_response_is_read_as_one_line() -> None:
    data = OK + b"X: a\r\n b\r\n\t c\r\nY: d\r\n\r\n"
    head = ResponseHead.read(data + b"body")
    assert head is not None
    assert (head.fields, head.values(b"x"), head.end) == (b"\r\nX: a b c\r\nY: d", [b"a b c"], len(data))


def test_blanks_of_a_response_are_looked_at_once() -> None:
    def read(blanks: str) -> None:
        with pytest.raises(BadMessage):
            ResponseHead.read(OK + b"X" + blanks.encode() + b"\r\n\r\n")

    assert not grows_too_fast(read, repeated("", " ", "x"), large=16_384)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (OK + b"X\r\n\r\n", "malformed header field"),
        (b"HTTP/1.1 2\r\n\r\n", "no HTTP/1.1 status line"),
        (b"SSH-2.0\r\n\r\n", "no HTTP/1.1 status line"),
        (OK + b"X: a\n\r\n\r\n", "a control character, or a line that does not end with CRLF"),
    ],
)
def test_malformed_response_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(BadMessage) as raised:
        ResponseHead.read(data)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("fields", "protocol"), [(b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"websocket"), (b"", b"")]
)
def test_response_that_switches_protocols_names_the_new_one_and_has_no_body(
    fields: bytes, protocol: bytes
) -> None:
    head = ResponseHead.read(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n")
    assert head is not None
    assert (head.status, head.upgrade, head.body, head.length) == (101, protocol, 0, -1)


def test_response_to_a_head_has_no_body() -> None:
    reader = ResponseReader(head_only=True)
    assert reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    assert reader.head is not None
    assert (reader.body, reader.head.length, reader.reusable) == (b"", 2, True)


def test_connection_with_bytes_after_a_response_is_not_used_again() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc")
    assert (reader.body, reader.rest, reader.reusable) == (b"ab", b"c", False)


def test_response_that_is_too_long_is_complete_and_its_connection_is_not_used_again() -> None:
    reader = ResponseReader(max_body_bytes=3)
    assert not reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
    assert reader.feed(b"cdef")
    assert (reader.body, reader.complete, reader.reusable) == (b"abc", True, False)


def test_interim_responses_are_bounded_and_a_switch_of_protocols_is_refused() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    reader = ResponseReader()
    assert not reader.feed(interim * 20)
    assert reader.status == 0
    assert reader.feed(b"HTTP/1.1 204 No Content\r\n\r\n")
    with pytest.raises(BadMessage, match="more than 20 interim responses"):
        ResponseReader().feed(interim * 21)
    with pytest.raises(BadMessage, match="switches protocols without being asked"):
        ResponseReader().feed(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        ([], ""),
        ([b"srv=1"], "1"),
        ([b"a=b; srv=1; c=d"], "1"),
        ([b"a=b", b"srv=1"], "1"),
        ([b'srv="1" '], "1"),
        ([b"xsrv=2;srv=1"], "1"),
        ([b"srvx=2"], ""),
        ([b"srv=1; srv=2"], "1"),
        ([b"SRV=1"], ""),
        ([b"srv=\xe9"], "é"),
    ],
)
def test_cookie_is_found_by_its_name(cookies: list[bytes], value: str) -> None:
    reader = RequestReader()
    reader.feed(a_request(*(b"Cookie: " + each for each in cookies)))
    assert reader.head is not None
    assert reader.head.cookie("srv") == value


def test_fields_are_left_out_by_their_names() -> None:
    lines = b"\r\nHost: a\r\nX: 1\r\nx:2\r\nY: X"
    assert messages.without_fields(lines, {b"x"}) == b"\r\nHost: a\r\nY: X"
    assert messages.without_fields(lines, ()) == lines


@pytest.mark.parametrize(
    ("method", "idempotent"),
    [(b"GET", True), (b"HEAD", True), (b"PUT", True), (b"DELETE", True), (b"POST", False), (b"PATCH", False)],
)
def test_request_may_be_repeated_if_its_method_is_idempotent(method: bytes, idempotent: bool) -> None:
    head = canonical_head(a_request(start=method + b" / HTTP/1.1"))
    assert head is not None
    assert head.idempotent is idempotent


@pytest.mark.parametrize(
    ("method", "target"),
    [("", "/"), ("G T", "/"), ("GET", ""), ("GET", "/a b"), ("GET", "/é"), ("GET", "/\n")],
)
def test_request_that_is_not_one_line_is_not_written(method: str, target: str) -> None:
    with pytest.raises(ValueError, match="of a request"):
        request_head(method, target, [])


def test_chunk_of_nothing_is_no_chunk() -> None:
    assert (chunk(b""), chunk(b"a" * 26), chunk(memoryview(b"ab"))) == (
        b"", b"1a\r\n" + b"a" * 26 + b"\r\n", b"2\r\nab\r\n",
    )  # fmt: skip


def test_trailers_that_would_change_the_message_are_left_out_whatever_their_spelling() -> None:
    lines = (
        b"X-Sum: 1\r\nCONTENT-LENGTH: 5\r\nx_forwarded_for: 1.1.1.1\r\nSet-Cookie: a\r\nServer-Timing: b\r\n"
    )
    assert messages.allowed_trailers(lines) == b"X-Sum: 1\r\nServer-Timing: b\r\n"
    assert messages.allowed_trailers(b"Host: a\r\n") == messages.allowed_trailers(b"") == b""
