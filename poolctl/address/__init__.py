"""Bind addresses: any spelling in, one canonical key out."""

from __future__ import annotations

from poolctl.address.address import Address, AddressError, canonical, parse
from poolctl.address.overlap import LOOPBACKS, UsedPorts, overlapping, overlaps

__all__ = [
    "LOOPBACKS",
    "Address",
    "AddressError",
    "UsedPorts",
    "canonical",
    "overlapping",
    "overlaps",
    "parse",
]
