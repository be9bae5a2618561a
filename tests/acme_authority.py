"""A certificate authority that speaks ACME (RFC 8555) with HTTP-01 challenges, as Let's Encrypt does."""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import json
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import josepy
from acme.jws import JWS
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PROBLEM = "urn:ietf:params:acme:error:"


class Authority:
    """Issues a certificate for each order whose challenge it has fetched from `challenge_port` of 127.0.0.1.

    `fetched` are the paths that it asked for, `root` is the certificate that clients have to trust.
    """

    def __init__(self, challenge_port: int) -> None:
        self.fetched: list[str] = []
        self._challenge_port = challenge_port
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        ca = x509.BasicConstraints(ca=True, path_length=0)
        self.root = self._signed(self._name, self._key.public_key(), ca)
        self._nonces: set[str] = set()
        self._accounts: dict[str, josepy.JWK] = {}
        self._orders: dict[str, dict[str, Any]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Context manager: answer clients at `url`/directory."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def new_nonce(self) -> str:
        nonce = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        self._nonces.add(nonce)
        return nonce

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], object]:
        """The status, headers and content of the answer to a signed request. Raises Refused."""
        signed = JWS.json_loads(body)
        header = signed.signature.combined
        nonce = base64.urlsafe_b64encode(header.nonce).decode().rstrip("=")
        if nonce not in self._nonces:
            raise Refused("badNonce")
        self._nonces.remove(nonce)
        key = self._accounts[header.kid] if header.kid else header.jwk
        if not signed.verify(key) or header.url != f"{self.url}{path}":
            raise Refused("malformed")
        payload = json.loads(signed.payload or b"{}")
        kind, _, number = path.strip("/").partition("/")
        if kind == "account":
            place = f"{self.url}/account/{len(self._accounts)}"
            self._accounts[place] = key
            return 201, {"Location": place}, {"status": "valid"}
        if kind == "order" and not number:
            number = str(len(self._orders))
            self._orders[number] = self._new_order(number, payload)
            return 201, {"Location": f"{self.url}/order/{number}"}, self._orders[number]["order"]
        order = self._orders[number]
        if kind == "challenge":
            self._check(order, key)
            return 200, {"Link": f'<{self.url}/authorization/{number}>;rel="up"'}, order["challenge"]
        if kind == "finalize":
            self._finalize(order, number, payload["csr"])
        return 200, {}, order["order" if kind == "finalize" else kind]

    def _new_order(self, number: str, wanted: dict[str, Any]) -> dict[str, Any]:
        challenge = {
            "type": "http-01",
            "url": f"{self.url}/challenge/{number}",
            "token": secrets.token_urlsafe(32),
            "status": "pending",
        }
        (identifier,) = wanted["identifiers"]
        return {
            "challenge": challenge,
            "authorization": {"identifier": identifier, "status": "pending", "challenges": [challenge]},
            "order": {
                "status": "pending",
                "identifiers": [identifier],
                "authorizations": [f"{self.url}/authorization/{number}"],
                "finalize": f"{self.url}/finalize/{number}",
            },
        }

    def _check(self, order: dict[str, Any], key: josepy.JWK) -> None:
        """Fetch the challenge by the name that is to be certified, and compare it (RFC 8555 §8.3)."""
        challenge, host = order["challenge"], order["authorization"]["identifier"]["value"]
        path = f"/.well-known/acme-challenge/{challenge['token']}"
        self.fetched.append(path)
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self._challenge_port, timeout=60)
        ) as client:
            client.request("GET", path, headers={"Host": host})
            answer = client.getresponse()
            thumbprint = base64.urlsafe_b64encode(key.thumbprint()).decode().rstrip("=")
            expected = f"{challenge['token']}.{thumbprint}"
            is_right = answer.status == 200 and answer.read().decode().rstrip() == expected
        order["authorization"]["status"] = challenge["status"] = "valid" if is_right else "invalid"
        order["order"]["status"] = "ready" if is_right else "invalid"
        if not is_right:
            challenge["error"] = {"type": f"{PROBLEM}unauthorized", "detail": f"status {answer.status}"}

    def _finalize(self, order: dict[str, Any], number: str, csr: str) -> None:
        if order["order"]["status"] != "ready":
            raise Refused("orderNotReady")
        request = x509.load_der_x509_csr(base64.urlsafe_b64decode(csr + "=" * (-len(csr) % 4)))
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        host = order["authorization"]["identifier"]["value"]
        if not request.is_signature_valid or names.get_values_for_type(x509.DNSName) != [host]:
            raise Refused("badCSR")
        made = self._signed(request.subject, request.public_key(), names)
        order["certificate"] = "".join(map(_pem, (made, self.root)))
        order["order"] |= {"status": "valid", "certificate": f"{self.url}/certificate/{number}"}

    def _signed(self, subject: x509.Name, key: Any, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=90))
            .add_extension(extension, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                places = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order"}
                self._send(200, {}, {name: f"{authority.url}/{place}" for name, place in places.items()})

            def do_HEAD(self) -> None:
                self._send(200, {}, {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    self._send(*authority.answer(self.path, body))
                except Refused as refused:
                    self._send(400, {}, {"type": f"{PROBLEM}{refused}", "detail": str(refused)})

            def _send(self, status: int, headers: dict[str, str], content: object) -> None:
                is_text = isinstance(content, str)
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                kind = "application/pem-certificate-chain" if is_text else "application/json"
                headers |= {"Content-Type": kind, "Content-Length": str(len(data))}
                for name, value in (headers | {"Replay-Nonce": authority.new_nonce()}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        return Handler


class Refused(Exception):
    """A request is refused, with this type of problem."""


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
