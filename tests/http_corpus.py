"""Requests and responses as no one should send them, and a few as they should be: what each reader has to make of them.

The sources are sections of RFC 9112, where no other is named.
"""

from __future__ import annotations

from typing import NamedTuple


class RequestCase(NamedTuple):
    """`status` is poolctl's answer, 200 for a request in order. `rest` is what follows it on the connection."""

    name: str
    source: str
    data: bytes
    status: int = 400
    body: bytes = b""
    rest: bytes = b""


class ResponseCase(NamedTuple):
    """`status` 0: it is refused. `whole`: it is complete, be it with the end of the connection."""

    name: str
    source: str
    data: bytes
    status: int = 0
    body: bytes = b""
    reusable: bool = False
    whole: bool = True
    head_only: bool = False


GET = b"GET / HTTP/1.1\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CODED = b"Transfer-Encoding: chunked\r\n"
LAST = b"0\r\n\r\n"
# What an attacker would have a second recipient take for the next request.
SMUGGLED = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"

REQUESTS = [
    # In order.
    RequestCase("plain", "§3", GET + b"Host: a\r\n\r\n", 200),
    RequestCase("pipelined", "§9.3.2", GET + b"Host: a\r\n\r\n" + SMUGGLED, 200, rest=SMUGGLED),
    RequestCase("with a body", "§6.2", POST + b"Content-Length: 3\r\n\r\nabcGET", 200, b"abc", b"GET"),
    RequestCase("empty body", "§6.2", POST + b"Content-Length: 0\r\n\r\n", 200),
    RequestCase("no space after the colon", "§5", GET + b"Host:a\r\n\r\n", 200),
    RequestCase("tabs around a value", "§5", GET + b"Host: \ta \t\r\n\r\n", 200),
    RequestCase("empty value", "§5", GET + b"Host: a\r\nX:\r\n\r\n", 200),
    RequestCase("bytes above ASCII in a value", "RFC 9110 §5.5", GET + b"Host: a\r\nX: \xc3\xbc\r\n\r\n", 200),
    RequestCase("HTTP/1.0 without a host", "§3.2", b"GET / HTTP/1.0\r\n\r\n", 200),
    RequestCase("absolute form", "§3.2.2", b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    RequestCase("asterisk form", "§3.2.4", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    RequestCase("empty host", "§3.2", GET + b"Host: \r\n\r\n", 200),
    RequestCase("host of IPv6", "RFC 9110 §7.2", GET + b"Host: [::1]:80\r\n\r\n", 200),
    # Framing: the smuggler's tools.
    RequestCase("in chunks", "§6.3", POST + CODED + b"\r\n2\r\nab\r\n" + LAST, 411),
    RequestCase("HEAD with chunks", "§6.3", b"HEAD / HTTP/1.1\r\nHost: a\r\n" + CODED + b"\r\n" + LAST, 411),
    RequestCase("coding in capitals", "§6.3", POST + b"Transfer-Encoding: CHUNKED\r\n\r\n" + LAST, 411),
    RequestCase("both framings", "§6.1", POST + b"Content-Length: 5\r\n" + CODED + b"\r\n" + LAST + SMUGGLED, 411),
    RequestCase("both framings, the other way", "§6.1", POST + CODED + b"Content-Length: 5\r\n\r\n" + LAST, 411),
    RequestCase("two lengths", "§6.3", POST + b"Content-Length: 0\r\nContent-Length: 32\r\n\r\n" + SMUGGLED),
    RequestCase("the same length twice", "RFC 9110 §8.6", POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n"),
    RequestCase("a list of lengths", "RFC 9110 §8.6", POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    RequestCase("signed length", "RFC 9110 §8.6", POST + b"Content-Length: +3\r\n\r\nabc"),
    RequestCase("negative length", "RFC 9110 §8.6", POST + b"Content-Length: -3\r\n\r\nabc"),
    RequestCase("length with underscores", "RFC 9110 §8.6", POST + b"Content-Length: 1_0\r\n\r\n0123456789"),
    RequestCase("hexadecimal length", "RFC 9110 §8.6", POST + b"Content-Length: 0x3\r\n\r\nabc"),
    RequestCase("length in parts", "RFC 9110 §8.6", POST + b"Content-Length: 1 0\r\n\r\n0123456789"),
    RequestCase("empty length", "RFC 9110 §8.6", POST + b"Content-Length:\r\n\r\n"),
    RequestCase("length that overflows", "RFC 9110 §8.6", POST + b"Content-Length: 18446744073709551616\r\n\r\n", 413),
    RequestCase("length of other digits", "RFC 9110 §8.6", POST + "Content-Length: ３\r\n\r\nabc".encode()),
    RequestCase("unknown coding", "§6.1", POST + b"Transfer-Encoding: xchunked\r\n\r\n" + LAST, 501),
    RequestCase("identity", "§7", POST + b"Transfer-Encoding: identity\r\n\r\n", 501),
    RequestCase("coding before chunked", "§6.1", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + LAST, 501),
    RequestCase("coding after chunked", "§6.1", POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + LAST, 501),
    RequestCase("chunked twice", "§6.1", POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + LAST, 501),
    RequestCase("two codings", "§6.1", POST + CODED + b"Transfer-Encoding: x\r\n\r\n" + LAST, 501),
    RequestCase("quoted coding", "§6.1", POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + LAST, 501),
    RequestCase("coding with a parameter", "§7", POST + b"Transfer-Encoding: chunked;a=b\r\n\r\n" + LAST, 501),
    RequestCase("vertical tab in the coding", "RFC 9110 §5.5", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + LAST),
    RequestCase("space before the colon of the coding", "§5.1", POST + b"Transfer-Encoding : chunked\r\n\r\n" + LAST),
    RequestCase("folded coding", "§5.2", POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + LAST),
    RequestCase("chunks in HTTP/1.0", "§6.1", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST, 411),
    # Lines and fields.
    RequestCase("lines that end with a bare LF", "§2.2", b"GET / HTTP/1.1\nHost: a\n\n"),
    RequestCase("one field that ends with a bare LF", "§2.2", GET + b"Host: a\nX: b\r\n\r\n"),
    RequestCase("empty line of a bare LF", "§2.2", GET + b"Host: a\r\n\n"),
    RequestCase("bare CR in a field", "§2.2", GET + b"Host: a\r\nX: b\rY: c\r\n\r\n"),
    RequestCase("bare CR in the target", "§2.2", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("two CRs at the end of a line", "§2.2", GET + b"Host: a\r\r\n\r\n"),
    RequestCase("empty line before it", "§2.2", b"\r\n" + GET + b"Host: a\r\n\r\n"),
    RequestCase("two empty lines before it", "§2.2", b"\r\n\r\n" + GET + b"Host: a\r\n\r\n"),
    RequestCase("space before it", "§2.2", b" " + GET + b"Host: a\r\n\r\n"),
    RequestCase("folded field", "§5.2", GET + b"Host: a\r\nX: b\r\n c\r\n\r\n"),
    RequestCase("folded field with a tab", "§5.2", GET + b"Host: a\r\nX: b\r\n\tc\r\n\r\n"),
    RequestCase("folded first field", "§2.2", GET + b" Host: a\r\n\r\n"),
    RequestCase("space before the colon", "§5.1", GET + b"Host : a\r\n\r\n"),
    RequestCase("tab before the colon", "§5.1", GET + b"Host\t: a\r\n\r\n"),
    RequestCase("space in a field's name", "§5.1", GET + b"Host: a\r\nX Y: z\r\n\r\n"),
    RequestCase("field without a colon", "§5", GET + b"Host: a\r\nX\r\n\r\n"),
    RequestCase("field without a name", "§5", GET + b"Host: a\r\n: x\r\n\r\n"),
    RequestCase("NUL in a value", "RFC 9110 §5.5", GET + b"Host: a\r\nX: b\0c\r\n\r\n"),
    RequestCase("NUL in a name", "RFC 9110 §5.1", GET + b"Host: a\r\nX\0: b\r\n\r\n"),
    RequestCase("NUL in the target", "§3.2", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("DEL in a value", "RFC 9110 §5.5", GET + b"Host: a\r\nX: b\x7f\r\n\r\n"),
    RequestCase("bytes above ASCII in a name", "RFC 9110 §5.1", GET + b"Host: a\r\nX\xc3\xbc: b\r\n\r\n"),
    RequestCase("no host", "§3.2", GET + b"\r\n"),
    RequestCase("two hosts", "§3.2", GET + b"Host: a\r\nHost: b\r\n\r\n"),
    RequestCase("the same host twice", "§3.2", GET + b"Host: a\r\nHost: a\r\n\r\n"),
    RequestCase("two hosts in HTTP/1.0", "§3.2", b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    RequestCase("a list of hosts", "§3.2", GET + b"Host: a, b\r\n\r\n"),
    RequestCase("host with a path", "§3.2", GET + b"Host: a/b\r\n\r\n"),
    RequestCase("host with a user", "§3.2", GET + b"Host: a@b\r\n\r\n"),
    # The request line.
    RequestCase("two spaces before the target", "§3", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("tab before the target", "§3", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("space after the version", "§3", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    RequestCase("space in the target", "§3.2", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("fragment in the target", "§3.2", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("bytes above ASCII in the target", "§3.2", b"GET /\xc3\xbc HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("no target", "§3", b"GET HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("no version", "§3", b"GET /\r\n\r\n"),
    RequestCase("method in brackets", "RFC 9110 §9.1", b"[GET] / HTTP/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("version in small letters", "§2.3", b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    RequestCase("version 1", "§2.3", b"GET / HTTP/1\r\nHost: a\r\n\r\n"),
    RequestCase("version 1.10", "§2.3", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    RequestCase("version 01.1", "§2.3", b"GET / HTTP/01.1\r\nHost: a\r\n\r\n"),
    RequestCase("version 0.9", "§2.3", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    RequestCase("version 1.2", "§2.3", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    RequestCase("version 2.0", "§2.3", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    RequestCase("preface of HTTP/2", "RFC 9113 §3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    RequestCase("response", "§3", b"HTTP/1.1 200 OK\r\n\r\n"),
    RequestCase("TLS", "§3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    RequestCase("SSH", "§3", b"SSH-2.0-OpenSSH_9.2\r\n"),
    RequestCase("nothing but empty lines", "§2.2", b"\r\n\r\n"),
    # Without an end.
    RequestCase("target without an end", "§3", b"GET /" + b"a" * 70_000, 431),
    RequestCase("field without an end", "§5.4 of RFC 9110", GET + b"X: " + b"a" * 70_000, 431),
    RequestCase("fields without an end", "§5.4 of RFC 9110", GET + b"X: y\r\n" * 12_000, 431),
    RequestCase("large head that does end", "§5.4 of RFC 9110", GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    RequestCase("body that is too large", "RFC 9110 §15.5.14", POST + b"Content-Length: 99999999\r\n\r\n", 413),
    # Cut off.
    RequestCase("half a request line", "§8", b"GET / HT"),
    RequestCase("half a head", "§8", GET + b"Host: a\r\n"),
    RequestCase("half an end of a head", "§8", GET + b"Host: a\r\n\r"),
    RequestCase("half a body", "§8", POST + b"Content-Length: 5\r\n\r\nab"),
]  # fmt: skip

OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + CODED + b"\r\n"
SIZED = b"Content-Length: 2\r\n\r\nok"
OLD = b"HTTP/1.0 200 OK\r\n"
KEPT = OLD + b"Connection: keep-alive\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"

RESPONSES = [
    # In order.
    ResponseCase("plain", "§4", OK + SIZED, 200, b"ok", True),
    ResponseCase("empty", "§6.2", OK + b"content-length: 0\r\n\r\n", 200, b"", True),
    ResponseCase("empty reason", "§4", b"HTTP/1.1 503 \r\nContent-Length: 2\r\n\r\nno", 503, b"no", True),
    ResponseCase("no reason", "§4", b"HTTP/1.1 503\r\nContent-Length: 2\r\n\r\nno", 503, b"no", True),
    ResponseCase("no content", "§6.3", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    ResponseCase("no content, with a length", "§6.3", b"HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n", 204, b"", True),
    ResponseCase("no content, with chunks", "§6.3", b"HTTP/1.1 204 x\r\n" + CODED + b"\r\n", 204, b"", True),
    ResponseCase("not modified", "§6.3", b"HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    ResponseCase("answer to HEAD", "§6.3", OK + b"Content-Length: 500\r\n\r\n", 200, b"", True, head_only=True),
    ResponseCase("answer to HEAD, in chunks", "§6.3", STREAM, 200, b"", True, head_only=True),
    ResponseCase("in chunks", "§7.1", STREAM + b"3;x=y\r\nabc\r\n1\r\nd\r\n" + LAST, 200, b"abcd", True),
    ResponseCase("trailers", "§7.1.2", STREAM + b"1\r\na\r\n0\r\nTrailer: 1\r\n\r\n", 200, b"a", True),
    ResponseCase("chunk extension", "§7.1.1", STREAM + b'2;a=b;c="d e"\r\nab\r\n' + LAST, 200, b"ab", True),
    ResponseCase("size with leading zeros", "§7.1", STREAM + b"002\r\nab\r\n" + LAST, 200, b"ab", True),
    ResponseCase("size in capitals", "§7.1", STREAM + b"A\r\n0123456789\r\n" + LAST, 200, b"0123456789", True),
    ResponseCase("coding in capitals", "§7", OK + b"Transfer-Encoding: CHUNKED\r\n\r\n" + LAST, 200, b"", True),
    ResponseCase("until the end", "§6.3", OK + b"\r\nhello", 200, b"hello"),
    ResponseCase("to be closed", "§9.6", OK + b"Connection: x, Close\r\n" + SIZED, 200, b"ok"),
    ResponseCase("closed, in two fields", "§9.6", OK + b"Connection: x\r\nConnection: close\r\n" + SIZED, 200, b"ok"),
    ResponseCase("closed-loop is not close", "§9.3", OK + b"Connection: closed-loop\r\n" + SIZED, 200, b"ok", True),
    ResponseCase("HTTP/1.0", "§9.3", OLD + SIZED, 200, b"ok"),
    ResponseCase("HTTP/1.0, kept", "§9.3", KEPT + SIZED, 200, b"ok"),
    ResponseCase("chunks in HTTP/1.0", "§6.1", KEPT + CODED + b"\r\n2\r\nok\r\n" + LAST, 200, b"ok"),
    ResponseCase("early hints", "RFC 9110 §15.2", HINTS + OK + SIZED, 200, b"ok", True),
    ResponseCase("folded field", "§5.2", OK + b"X: a\r\n b\r\n\t c\r\n" + SIZED, 200, b"ok", True),
    ResponseCase("more than one answer", "§9.2", OK + SIZED + OK, 200, b"ok"),
    # Not in order, and understood as most clients do.
    ResponseCase("both framings", "§6.3", OK + b"Content-Length: 5\r\n" + CODED + b"\r\n" + LAST, 200, b"", True),
    ResponseCase("space after a size", "§7.1", STREAM + b"2 \r\nab\r\n" + LAST, 200, b"ab", True),
    ResponseCase("bare CR in an extension", "§7.1.1", STREAM + b"2;a\rb\r\nab\r\n" + LAST, 200, b"ab", True),
    ResponseCase("NUL in an extension", "§7.1.1", STREAM + b"2;\0\r\nab\r\n" + LAST, 200, b"ab", True),
    ResponseCase("folded trailer", "§7.1.2", STREAM + b"0\r\nA: b\r\n c\r\n\r\n", 200, b"", True),
    ResponseCase("trailer ended by a bare LF", "§7.1.2", STREAM + b"0\r\nA: b\n\r\n", 200, b"", True),
    ResponseCase("version 1.2", "§2.3", b"HTTP/1.2 200 OK\r\n" + SIZED, 200, b"ok", True),
    # Refused.
    ResponseCase("space before an extension", "§7.1.1", STREAM + b"2 ;a\r\nab\r\n" + LAST),
    ResponseCase("two lengths", "§6.3", OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
    ResponseCase("a list of lengths", "§6.3", OK + b"Content-Length: 2, 3\r\n\r\nabc"),
    ResponseCase("length that is no number", "§6.3", OK + b"Content-Length: many\r\n\r\n"),
    ResponseCase("length that overflows", "RFC 9110 §8.6", OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n"),
    ResponseCase("unknown coding", "§6.3", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + LAST),
    ResponseCase("chunk without a size", "§7.1", STREAM + b"\r\nab\r\n" + LAST),
    ResponseCase("negative chunk", "§7.1", STREAM + b"-2\r\nabcdef\r\n"),
    ResponseCase("signed chunk", "§7.1", STREAM + b"+2\r\nab\r\n" + LAST),
    ResponseCase("prefixed chunk", "§7.1", STREAM + b"0x2\r\nab\r\n"),
    ResponseCase("chunk with an underscore", "§7.1", STREAM + b"1_0\r\n0123456789abcdef\r\n" + LAST),
    ResponseCase("chunk that overflows", "§7.1", STREAM + b"f" * 21 + b"\r\nab\r\n" + LAST),
    ResponseCase("size without an end", "§7.1", STREAM + b"f" * 5000 + b"\r\n"),
    ResponseCase("chunk that is no number", "§7.1", STREAM + b"zz\r\n"),
    ResponseCase("space before a size", "§7.1", STREAM + b" 2\r\nab\r\n" + LAST),
    ResponseCase("size ended by a bare LF", "§7.1", STREAM + b"2\nab\r\n" + LAST),
    ResponseCase("extension ended by a bare LF", "§7.1.1", STREAM + b"2;a\nab\r\n" + LAST),
    ResponseCase("extension that is too long", "§7.1.1", STREAM + b"2;" + b"a" * 5000 + b"\r\nab\r\n" + LAST),
    ResponseCase("extension without an end", "§7.1.1", STREAM + b"2;" + b"a" * 5000),
    ResponseCase("chunk that is longer than it says", "§7.1", STREAM + b"2\r\nabc\r\n" + LAST),
    ResponseCase("chunk that ends with a bare LF", "§7.1", STREAM + b"2\r\nab\n" + LAST),
    ResponseCase("chunk that ends with a bare CR", "§7.1", STREAM + b"2\r\nab\r0" + LAST),
    ResponseCase("malformed trailer", "§7.1.2", STREAM + b"0\r\nno colon\r\n\r\n"),
    ResponseCase("trailers without an end", "§7.1.2", STREAM + b"0\r\n" + b"A: b\r\n" * 2000),
    ResponseCase("other protocol, not asked for", "RFC 9110 §15.2.2", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
    ResponseCase("interim answers without an end", "RFC 9110 §15.2", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    ResponseCase("lines that end with a bare LF", "§2.2", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    ResponseCase("bare CR in a field", "§2.2", OK + b"X: a\rb\r\n\r\n"),
    ResponseCase("NUL in a field", "RFC 9110 §5.5", OK + b"X: a\0b\r\n\r\n"),
    ResponseCase("space before the colon", "§5.1", OK + b"Content-Length : 2\r\n\r\nok"),
    ResponseCase("field without a colon", "§5", OK + b"X\r\n\r\n"),
    ResponseCase("status of two digits", "§4", b"HTTP/1.1 20 OK\r\n\r\n"),
    ResponseCase("status of four digits", "§4", b"HTTP/1.1 2000 OK\r\n\r\n"),
    ResponseCase("status zero", "§4", b"HTTP/1.1 000 OK\r\n\r\n"),
    ResponseCase("status that is no number", "§4", b"HTTP/1.1 abc\r\n\r\n"),
    ResponseCase("no status", "§4", b"HTTP/1.1\r\n\r\n"),
    ResponseCase("version 2", "§2.3", b"HTTP/2 200\r\n\r\n"),
    ResponseCase("SSH", "§4", b"SSH-2.0-OpenSSH\r\n"),
    ResponseCase("request", "§4", GET + b"Host: a\r\n\r\n"),
    ResponseCase("empty line before it", "§4", b"\r\n" + OK + b"\r\n"),
    ResponseCase("field without an end", "RFC 9110 §5.4", OK + b"x" * 70_000),
    ResponseCase("fields without an end", "RFC 9110 §5.4", OK + b"x: y\r\n" * 12_000),
    # Cut off.
    ResponseCase("half a head", "§8", OK + b"Content-Length: 2\r\n", whole=False),
    ResponseCase("nothing but interim answers", "§8", b"HTTP/1.1 100 Continue\r\n\r\n", whole=False),
    ResponseCase("half a body", "§8", OK + b"Content-Length: 5\r\n\r\nab", 200, b"ab", whole=False),
    ResponseCase("no last chunk", "§8", STREAM + b"2\r\nab\r\n", 200, b"ab", whole=False),
    ResponseCase("half a chunk", "§8", STREAM + b"5\r\nab", 200, b"ab", whole=False),
    ResponseCase("half a size", "§8", STREAM + b"5", 200, whole=False),
    ResponseCase("half an end of a chunk", "§8", STREAM + b"2\r\nab\r", 200, b"ab", whole=False),
    ResponseCase("half a trailer", "§8", STREAM + b"0\r\nA: b\r\n", 200, whole=False),
]  # fmt: skip
