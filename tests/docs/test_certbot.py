"""docs/tls.md from its first step to a renewal, with certbot's own ACME library and an authority that checks."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from http.client import HTTPConnection
from pathlib import Path

import josepy
import pytest
from acme import challenges, errors, messages
from acme.client import ClientNetwork, ClientV2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.acme_authority import Authority
from tests.deadline import wait_until
from tests.docs.pages import ROOT, blocks
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import HELLO_APP, RealPool

HOST = "shop.example.com"


class Certbot:
    """Does what `certbot certonly --webroot` does: writes challenges below `webroot`, certificates below `live`."""

    def __init__(self, authority: Authority, webroot: Path, live: Path) -> None:
        self._webroot, self._live = webroot, live
        account = josepy.JWKRSA(key=rsa.generate_private_key(65537, 2048))
        network = ClientNetwork(account)
        directory = ClientV2.get_directory(f"{authority.url}/directory", network)
        self._client = ClientV2(directory, network)
        self._client.new_account(messages.NewRegistration(terms_of_service_agreed=True))
        self._key = account
        self._count = 0

    def close(self) -> None:
        self._client.net.session.close()

    def get(self, *, answer: str = "") -> int:
        """Get a certificate and install it; returns its serial number. `answer` replaces that to the challenge."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(HOST)])
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        csr = request.add_extension(names, critical=False).sign(key, hashes.SHA256())
        order = self._client.new_order(csr.public_bytes(serialization.Encoding.PEM))
        (authorization,) = order.authorizations
        (challenge,) = authorization.body.challenges
        assert isinstance(challenge.chall, challenges.HTTP01)
        response, text = challenge.response_and_validation(self._key)
        file = self._webroot / challenge.chall.path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(answer or text)
        try:
            self._client.answer_challenge(challenge, response)
            chain = self._client.poll_and_finalize(order).fullchain_pem
        finally:
            file.unlink()
        self._install(chain.encode(), key)
        return x509.load_pem_x509_certificate(chain.encode()).serial_number

    def _install(self, chain: bytes, key: ec.EllipticCurvePrivateKey) -> None:
        """Write both files, and lead the links to them one after the other, as certbot does."""
        self._count += 1
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        contents = {"privkey": key.private_bytes(serialization.Encoding.PEM, *form), "fullchain": chain}
        for name, content in contents.items():
            file = self._live / "archive" / f"{name}{self._count}.pem"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        for name in contents:
            link = self._live / f"{name}.pem"
            link.unlink(missing_ok=True)
            link.symlink_to(self._live / "archive" / f"{name}{self._count}.pem")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_recipe_with_certbot_leads_to_a_certificate_and_to_its_renewal_under_load(
    real_pool: RealPool,
) -> None:
    program("haproxy")
    ports = {each: claim_port() for each in ("80", "443", "8000", "8001")}
    webroot, live = real_pool.directory / "webroot", real_pool.directory / "live"
    webroot.mkdir()
    (text,) = [each.text for each in blocks(ROOT / "docs/tls.md") if each.language == "toml"]
    text = re.sub("/etc/letsencrypt/live/[^/]*", str(live), text).replace("/var/www/acme", str(webroot))
    text = re.sub(r":(80|443|8000|8001)\b", lambda match: f":{ports[match[1]]}", text)
    real_pool.write("shop.py", HELLO_APP)
    # Step 1: "with `bind = ":80"` alone and without the redirect".
    first = re.sub(r"^bind = \[.*", f'bind = ":{ports["80"]}"', text, flags=re.MULTILINE)
    first = re.sub(r'\[\[route\]\]\nalias = "to-https".*?\n\n', "", first, flags=re.DOTALL)
    assert "https" not in first
    real_pool.write("pool.toml", first)
    real_pool.ok("start")
    authority = Authority(ports["80"])
    with authority.running(), contextlib.closing(Certbot(authority, webroot, live)) as certbot:
        # Step 2.
        with pytest.raises(errors.ValidationError):
            certbot.get(answer="of somebody else")
        assert not live.exists()
        serial = certbot.get()
        # Step 3.
        real_pool.write("pool.toml", text)
        real_pool.ok("reload")
        assert visit(ports["443"], authority) == (200, serial)
        assert redirect_of(ports["80"]) == (308, f"https://{HOST}/cart")
        # Renewal: the challenge comes before the redirect.
        over = threading.Event()
        seen: list[tuple[int | str, int]] = []

        def keep_visiting() -> None:
            while not over.is_set():
                try:
                    seen.append(visit(ports["443"], authority))
                except Exception as error:
                    seen.append((repr(error), 0))

        visitor = threading.Thread(target=keep_visiting)
        visitor.start()
        try:
            renewed = certbot.get()
            # The gateway looks for new files twice a minute.
            wait_until(lambda: seen and seen[-1][1] == renewed, timeout_seconds=120)
            settled = len(seen)
            wait_until(lambda: len(seen) > settled + 20)
        finally:
            over.set()
            visitor.join()
    assert renewed != serial
    assert {status for status, _ in seen} == {200}
    assert {number for _, number in seen} == {serial, renewed}
    assert len(authority.fetched) == 3
    assert real_pool.run("status").code == 0


def visit(port: int, authority: Authority) -> tuple[int, int]:
    """The status of an answer over TLS, and the serial number of the certificate, which the authority has issued."""
    tls = ssl.create_default_context(cadata=authority.root.public_bytes(serialization.Encoding.PEM).decode())
    plain = socket.create_connection(("127.0.0.1", port), timeout=60)
    with plain, contextlib.closing(HTTPConnection(HOST, timeout=60)) as client:
        client.sock = secure = tls.wrap_socket(plain, server_hostname=HOST)
        serial = x509.load_der_x509_certificate(secure.getpeercert(True) or b"").serial_number
        client.request("GET", "/cart")
        return client.getresponse().status, serial


def redirect_of(port: int) -> tuple[int, str | None]:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        client.request("GET", "/cart", headers={"Host": HOST})
        answer = client.getresponse()
        return answer.status, answer.getheader("Location")
