"""Bind addresses: any spelling in, one canonical key out."""

from __future__ import annotations

from poolctl.address.address import Address, AddressError
from poolctl.address.overlap import LOOPBACKS, UsedPorts, overlapping, overlaps
from poolctl.address.parse import canonical, parse

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
