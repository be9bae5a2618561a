"""Makes the tables, once or again."""

import os
from pathlib import Path

from shop.database import connect

Path(os.environ["DATABASE"]).parent.mkdir(exist_ok=True)
connect().execute("create table if not exists orders (item text, delivered integer default 0)")
print("the tables are there")
