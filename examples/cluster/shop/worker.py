"""Delivers what was ordered; at SIGTERM it finishes what it has begun."""

import signal
import threading

from shop.database import connect

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
database = connect()
while not ended.wait(0.2):
    for (item,) in database.execute("select item from orders where not delivered").fetchall():
        database.execute("update orders set delivered = 1 where item = ?", [item])
        print(f"delivered {item}", flush=True)
