"""nginx and HAProxy with one process each, for comparison with the gateway."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 10.0
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
_PACKAGES = {"nginx": "nginx", "HAProxy": "haproxy"}

_NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
{user}events {{ worker_connections 25000; }}
{body}
"""
_NGINX_HTTP = """
http {{
  access_log off;
  client_max_body_size 0;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/client_body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  map $http_upgrade $hop {{ default upgrade; '' ''; }}
  upstream worker {{ server 127.0.0.1:{backend}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{plain};
    listen 127.0.0.1:{tls} ssl http2;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    location / {{
      proxy_pass http://worker;
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $hop;
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"""
_HAPROXY = """
global
  nbthread 1
  maxconn 12000
  no strict-limits
defaults
  mode {mode}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
"""
_HAPROXY_HTTP = """
  timeout tunnel 1h
  timeout http-keep-alive 1h
  http-reuse always
  option forwardfor
frontend clients
  bind 127.0.0.1:{plain}
  bind 127.0.0.1:{tls} ssl crt {certificate} alpn h2,http/1.1
  default_backend worker
backend worker
  server worker 127.0.0.1:{backend}
"""
_HAPROXY_TCP = """
listen clients
  bind 127.0.0.1:{plain}
  server backend 127.0.0.1:{backend}
"""


def is_installed(name: str) -> bool:
    """Whether the peer is installed; if not, print how to install it."""
    if shutil.which(_PACKAGES[name], path=_PATH):
        return True
    print(f"  {name} is not installed and left out: apt-get install {_PACKAGES[name]}", file=sys.stderr)
    return False


@contextmanager
def http_peer(
    name: str, directory: Path, *, plain: int, tls: int, backend: int, certificate: Path
) -> Iterator[int]:
    """Run a process that proxies HTTP from both ports to the backend's; yields its pid."""
    text = http_configuration(name, directory, plain=plain, tls=tls, backend=backend, certificate=certificate)
    with _running(name, directory, text) as pid:
        yield pid


def http_configuration(
    name: str, directory: Path, *, plain: int, tls: int, backend: int, certificate: Path
) -> str:
    """Its configuration for `http_peer`."""
    values = {"plain": plain, "tls": tls, "backend": backend, "certificate": certificate}
    if name == "nginx":
        return _nginx(directory, _NGINX_HTTP.format(directory=directory, **values))
    return _HAPROXY.format(mode="http") + _HAPROXY_HTTP.format(**values)


@contextmanager
def stream_peer(directory: Path, *, plain: int, backend: int) -> Iterator[int]:
    """Run a HAProxy that copies connections from the port to the backend's."""
    text = _HAPROXY.format(mode="tcp") + _HAPROXY_TCP.format(plain=plain, backend=backend)
    with _running("HAProxy", directory, text) as pid:
        yield pid


def _nginx(directory: Path, body: str) -> str:
    # As root it would run its processes as a user without access to the directory.
    user = "" if os.geteuid() else "user root;\n"
    return _NGINX.format(directory=directory, user=user, body=body)


@contextmanager
def _running(name: str, directory: Path, text: str) -> Iterator[int]:
    package = _PACKAGES[name]
    path = directory / f"{package}.conf"
    path.write_text(text)
    options = ["-p", str(directory), "-c"] if name == "nginx" else ["-db", "-f"]
    program = shutil.which(package, path=_PATH) or package
    with open(directory / f"{package}.out", "ab") as output:
        process = subprocess.Popen(
            [program, *options, str(path)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield _worker(process) if name == "nginx" else process.pid
    finally:
        process.terminate()
        process.wait()


def _worker(process: subprocess.Popen[bytes]) -> int:
    """The one child of nginx's main process."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError("nginx did not start; see its configuration")
