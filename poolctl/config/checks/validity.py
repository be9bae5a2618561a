"""The validity period of a certificate, read without loading OpenSSL into the supervisor."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def certificate_validity(text: str) -> tuple[datetime, datetime] | None:
    """The times of the first certificate in a PEM file, which is the server's own; None if they cannot be read."""
    try:
        return _validity(base64.b64decode(text.partition(BEGIN)[2].partition(END)[0]))
    except (ValueError, IndexError):
        return None


def _validity(der: bytes) -> tuple[datetime, datetime]:
    # RFC 5280 §4.1:
    # Certificate → tbsCertificate → [version], serial, algorithm, issuer, validity → two times.
    _, certificate, _ = _element(der, 0)
    _, inner, _ = _element(certificate, 0)
    tag, _, after = _element(inner, 0)
    position = after if tag == 0xA0 else 0
    for _ in range(3):
        _, _, position = _element(inner, position)
    _, times, _ = _element(inner, position)
    tag, begins, after = _element(times, 0)
    end_tag, ends, _ = _element(times, after)
    return _time(tag, begins), _time(end_tag, ends)


def _element(data: bytes, start: int) -> tuple[int, bytes, int]:
    """Tag, content and the position after it, of a DER element (X.690 §8.1)."""
    length = data[start + 1]
    begin = start + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[begin : begin + count], "big")
        begin += count
    return data[start], data[begin : begin + length], begin + length


def _time(tag: int, content: bytes) -> datetime:
    pattern = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return datetime.strptime(content.decode("ascii"), pattern).replace(tzinfo=UTC)
