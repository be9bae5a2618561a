"""Responses as they are read, which h11 reads in the same way, and heads of requests as they are written."""

from __future__ import annotations

import contextlib
import random
from time import thread_time

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolctl.http.messages import (
    MAX_HEAD_BYTES,
    MOST_CHUNKS_A_SECOND,
    MOST_FIELDS,
    BadMessage,
    ChunkedBodyReader,
    ResponseHead,
    ResponseReader,
    request_head,
)
from tests.growth import grows_too_fast, repeated
from tests.http_corpus import RESPONSES
from tests.steps import steps_of

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED_RESPONSE = OK + b"transfer-encoding: chunked\r\n\r\n"


def a_response(*lines: bytes, start: bytes = b"HTTP/1.1 204 No Content") -> bytes:
    return b"\r\n".join((start, *lines, b"", b""))


def test_beginning_of_a_head_is_incomplete_wherever_it_is_cut() -> None:
    head = a_response(b"X: \ta\tb \t", b"Y: \xc3\xbc", b"Connection: CLOSE")
    for end in range(len(head)):
        assert ResponseHead.read(head[:end]) is None
        assert ResponseHead.read(head[:end], max(0, end - 1)) is None
    found = ResponseHead.read(head + b"more")
    assert found is not None
    assert (found.end, found.status, found.reusable) == (len(head), 204, False)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01", b"HTTP/1.1 200 OK\n", OK + b"X: \0", b"SSH", b"HTTP/1.1 2\r\n"]
)
def test_beginning_that_no_more_bytes_can_make_valid_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadMessage):
        ResponseHead.read(data)
    with pytest.raises(BadMessage):
        ResponseHead.read(data, len(data) - 1)


@pytest.mark.slow
def test_mutated_response_that_is_accepted_is_read_as_h11_reads_it() -> None:
    chance = random.Random(20)
    accepted = sum(accepted_and_read_alike(mutated(chance)) for _ in range(6000))
    assert accepted > 600


def mutated(chance: random.Random) -> bytes:
    """A response of the table, of which lines are exchanged, removed, doubled, or bytes changed."""
    tables = [case.data for case in RESPONSES if len(case.data) < 200 and not case.head_only]
    lines = chance.choice([case.data for case in RESPONSES if case.reusable and not case.head_only]).split(
        b"\r\n"
    )
    for _ in range(chance.randint(0, 2)):
        other = chance.choice(tables).split(b"\r\n")
        lines.insert(chance.randint(0, len(lines)), chance.choice(other))
    data = bytearray(b"\r\n".join(lines))
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        at = chance.randrange(len(data))
        piece = bytes([chance.choice(b"\t\n\r \0,:;/?#*=HCT\x7f\x80\xff_09az")])
        data[at : at + chance.randint(0, 2)] = piece * chance.randint(0, 2)
    return bytes(data)


def accepted_and_read_alike(data: bytes) -> bool:
    reader = ResponseReader()
    try:
        reader.feed(data)
    except BadMessage:
        return False
    if not reader.complete:
        return False
    # h11 refuses a folded first field, and the space before an extension that RFC 9112 §7.1.1 allows.
    with contextlib.suppress(h11.RemoteProtocolError):
        assert read_by_h11(data) == (reader.status, reader.body), data
    return True


def read_by_h11(data: bytes) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body = 0, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
    return status, body


@pytest.mark.heavy_variants
@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [b"a:\r\n", b"a", b"a: ", b":", b"c: d\r\n", b"Connection: a,", b", a", b"-", b"\t", b"C", b"\r\n "],
)
def test_long_head_takes_linear_time(part: bytes) -> None:
    """Sixteen times the length takes sixteen times as long, and 256 times as long when the time is quadratic."""
    beginnings = (b"", b"HTTP/1.1 200 ", OK, OK + b"X: ", OK + b"Connection: a")

    def seconds(count: int) -> float:
        return min(sum(map(parsing_seconds, [each + part * count for each in beginnings])) for _ in range(5))

    assert seconds(16_000) < 100 * seconds(1_000)


def parsing_seconds(data: bytes) -> float:
    began = thread_time()
    with contextlib.suppress(BadMessage):
        ResponseHead(data + b"\r\n\r\n")
    with contextlib.suppress(BadMessage):
        ResponseHead.read(data)
    return thread_time() - began


def test_request_head_has_its_fields_in_utf_8() -> None:
    assert request_head("GET", "/a?b=c", [("Host", "x"), ("X-Name", "ü\tb")]) == (
        "GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-Name: ü\tb\r\n\r\n".encode()
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


TINY = b"1\r\na\r\n"
SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"000%x"])
EXTENSIONS = st.sampled_from([b"", b"", b"", b";a=b", b' ;a="b c"', b";"])
CHUNK = st.tuples(st.binary(min_size=1, max_size=40), SIZES, EXTENSIONS)
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"Content-Length: 5\r\nX-Sum: 1\r\n"])


def fed(body: ChunkedBodyReader, data: bytes, cuts: list[int]) -> bytes:
    """The body's data, which arrives in these pieces."""
    found, begin = b"", 0
    for end in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        if body.done:
            body.rest += data[begin:end]
        else:
            found += body.feed(data[begin:end])
        begin = end
    return found


@given(
    st.lists(CHUNK, max_size=8), TRAILERS, st.lists(st.integers(0, 400), max_size=6), st.binary(max_size=9)
)
@example([(b"a", b"%x", b"")], b"", [], b"")
@example([(b"a", b"%x", b"")], b"", [4, 5, 6, 7, 8, 9, 10], b"GET")
def test_data_of_chunks_is_read_however_they_are_split(
    chunks: list[tuple[bytes, bytes, bytes]], trailers: bytes, cuts: list[int], rest: bytes
) -> None:
    sent = b"".join(size % len(data) + more + b"\r\n" + data + b"\r\n" for data, size, more in chunks)
    sent += b"0\r\n" + trailers + b"\r\n"
    data = b"".join(each[0] for each in chunks)
    body = ChunkedBodyReader()
    assert fed(body, sent + rest, cuts) == data
    assert (body.done, body.rest) == (True, rest)


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
    extended = b"1;" + b"x" * 4095 + b"\r\na\r\n"  # 4 KiB after the size
    body = ChunkedBodyReader()
    assert body.feed(extended * 16) == b"a" * 16  # 64 KiB
    assert body.feed(TINY) == b"a"
    with pytest.raises(BadMessage, match="too many extensions of chunks"):
        body.feed(b"1;\r\na\r\n")
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
    data = body.feed(before + b"0\r\n" + trailers + (b"\r\n" if whole else b""))
    assert data + (b"" if whole else body.feed(b"\r\n")) == before[6:-2]
    assert (body.done, body.rest) == (True, b"")
    with pytest.raises(BadMessage, match="malformed trailers"):
        refused.feed(before + b"0\r\nb" + trailers + (b"\r\n" if whole else b""))


@pytest.mark.parametrize("line", [b"a", b"a:", b"a :b", b" a: b", b": b", b"a: \x00"])
def test_trailers_are_whole_lines(line: bytes) -> None:
    body = ChunkedBodyReader()
    sent = b"0\r\nX: y\r\n" + line + b"\r\n\r\n"
    if line == b"a:":
        assert (body.feed(sent), body.done) == (b"", True)
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


@pytest.mark.slow
def test_steps_of_a_refused_burst_are_those_of_a_second() -> None:
    def burst() -> None:
        with pytest.raises(BadMessage):
            ChunkedBodyReader(clock=lambda: 0.0).feed(TINY * 200_000)

    assert steps_of(burst) < 40 * MOST_CHUNKS_A_SECOND


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


@pytest.mark.parametrize(
    ("head", "body", "complete_at_end", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ab", True, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"ab", False, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", True, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n", b"ab", True, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", b"ab", True, False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n", b"ab", True, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"ab", True, False),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", b"", True, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b"", True, True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ab", True, True),
    ],
)
def test_response_is_read_to_its_end_and_says_whether_the_connection_can_be_used_again(
    head: bytes, body: bytes, complete_at_end: bool, reusable: bool
) -> None:
    for step in (1, 1000):
        reader = ResponseReader()
        assert (reader.status, reader.head, reader.reusable) == (0, None, False)
        data = head + body
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
        assert reader.body == body
        assert reader.record_disconnect() is complete_at_end
        assert reader.reusable is reusable
        assert reader.head is not None
        assert reader.status == reader.head.status
        assert repr(reader.head) == f"<ResponseHead {reader.status}>"


def test_folded_field_of_a_response_is_read_as_one_line() -> None:
    data = OK + b"X: a\r\n b\r\n\t c\r\nY: d\r\n\r\n"
    head = ResponseHead.read(data + b"body")
    assert head is not None
    assert (head.fields, head.get(b"x"), head.end) == (b"\r\nX: a b c\r\nY: d", b"a b c", len(data))


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


def test_response_to_a_head_has_no_body() -> None:
    reader = ResponseReader(head_only=True)
    assert reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    assert reader.head is not None
    assert (reader.body, reader.reusable) == (b"", True)


def test_connection_with_bytes_after_a_response_is_not_used_again() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc")
    assert (reader.body, reader.reusable) == (b"ab", False)


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
    ("method", "target"),
    [("", "/"), ("G T", "/"), ("GET", ""), ("GET", "/a b"), ("GET", "/é"), ("GET", "/\n")],
)
def test_request_that_is_not_one_line_is_not_written(method: str, target: str) -> None:
    with pytest.raises(ValueError, match="of a request"):
        request_head(method, target, [])


def test_field_is_found_by_name_as_it_was_sent() -> None:
    head = ResponseHead(a_response(b"X-A:  One \r\nx-b: two\r\nx-a: Three"))
    assert (head.get(b"x-a"), head.get(b"x-b"), head.get(b"x")) == (b"One, Three", b"two", b"")


def test_head_may_have_64_kibibytes_and_a_hundred_fields() -> None:
    assert MOST_FIELDS == 100
    fits = a_response(b"X: ".ljust(MAX_HEAD_BYTES - len(a_response(b"")), b"x"))
    assert len(fits) == MAX_HEAD_BYTES == 64 * 1024
    for step in (97, len(fits)):
        cut = [fits[at : at + step] for at in range(0, len(fits), step)]
        reader = ResponseReader()
        assert [reader.feed(piece) for piece in cut][-1]
        with pytest.raises(BadMessage, match="the head is too large"):
            [ResponseReader().feed(fits.replace(b"X: ", b"X: y"))]
    fields = [b"X: y"] * MOST_FIELDS
    assert ResponseReader().feed(a_response(*fields))
    with pytest.raises(BadMessage, match=f"more than {MOST_FIELDS} fields"):
        ResponseReader().feed(a_response(*fields, b"X: y"))
