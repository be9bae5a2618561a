"""A small shop: a Flask application, and nothing in it knows poolctl."""

import os
import time

from flask import Flask, Response, request

app = Flask(__name__)
STOCK = {"tea": 12, "coffee": 8}


@app.get("/")
def stock():
    return {"stock": STOCK, "worker": os.getpid()}


@app.post("/orders/<item>")
def order(item: str):
    if item not in STOCK:
        return {"error": f"there is no {item}"}, 404
    return {"ordered": item, "count": int(request.args.get("count", 1))}


@app.get("/report")
def report():
    def lines():
        for item, count in STOCK.items():
            time.sleep(0.2)
            yield f"{item}: {count}\n"

    return Response(lines(), mimetype="text/plain")
