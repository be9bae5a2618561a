"""A program with mistakes: mypy and pyright, both strict, find each line that is marked."""

from poolctl import Field, Pool, ServerConfig, connect
from poolctl.config import Health, Http, Probe, Restart

ServerConfig(name="a", bind="127.0.0.1:1", ap="x:y")  # error
ServerConfig(name="a", bind=8000, app="x:y")  # error
ServerConfig(name="a", bind="127.0.0.1:1", app="x:y", workers="two")  # error
ServerConfig(name="a", bind="127.0.0.1:1", app="x:y", env=["A=1"])  # error
ServerConfig(name="a", bind="127.0.0.1:1", app="x:y", restart=Restart(limit="many"))  # error
ServerConfig(name="a", bind="127.0.0.1:1", app="x:y", http=Http(acces_log=True))  # error
ServerConfig(name="a", bind="127.0.0.1:1", app="x:y", health=Health(readiness=Probe(htp="/")))  # error
web = ServerConfig(name="a", bind="127.0.0.1:1", app="x:y")
web.workers = 3  # error
number: int = web.start_timeout  # error
Pool(web)  # error
Pool(["web"])  # error
Pool([web]).filter(1, "a")  # error
connect().list()["servers"]  # error
connect().list()["items"][0]["port"]  # error
connect().list("name", regex="^w")  # error
connect().list(Field.NAME, Field.BIND, regex="^w")["items"]  # error
connect().list("web*").sort()  # error
print(Field.PORT)  # error
