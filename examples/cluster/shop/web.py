"""Takes orders."""

from typing import Any

from fastapi import FastAPI

from shop.database import connect

app = FastAPI()


@app.get("/check")
def check() -> str:
    """Ready if the database answers."""
    connect().execute("select count(*) from orders")
    return "ok"


@app.get("/orders")
def orders() -> list[dict[str, Any]]:
    """What was ordered, and whether it was delivered."""
    rows = connect().execute("select item, delivered from orders")
    return [{"item": item, "delivered": bool(delivered)} for item, delivered in rows]


@app.post("/orders/{item}")
def order(item: str) -> dict[str, str]:
    """Order something."""
    connect().execute("insert into orders (item) values (?)", [item])
    return {"ordered": item}
