"""The books and their prices."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel

SHELF = {"sicp": 6900, "tapl": 8400, "taocp": 19900}

router = APIRouter(prefix="/books")


class Price(BaseModel):
    book: str
    cents: int
    currency: str


@router.get("")
async def books(request: Request) -> list[str]:
    return sorted(request.app.state.shelf)


@router.get("/{book}")
async def price(book: str, request: Request) -> Price:
    shelf = request.app.state.shelf
    if book not in shelf:
        raise HTTPException(404, f"no book {book!r}")
    return Price(book=book, cents=shelf[book], currency=request.app.state.settings.currency)
