"""The authorities of a test, and their certificates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import trustme

Kind = Literal["good", "of a stranger", "for another host", "expired"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Certificates:
    """A private authority that is trusted, and a foreign one that is not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ours, self._strangers = trustme.CA(), trustme.CA()
        self.authority = folder / "authority.pem"
        self.stranger = folder / "stranger.pem"
        self._ours.cert_pem.write_to_path(str(self.authority))
        self._strangers.cert_pem.write_to_path(str(self.stranger))

    def of_server(self, kind: Kind) -> Certificate:
        """The certificate of a server on the loopback interface."""
        name = "elsewhere.example.org" if kind == "for another host" else "127.0.0.1"
        issuer = self._strangers if kind == "of a stranger" else self._ours
        yesterday = datetime.now(UTC) - timedelta(days=1)
        made = issuer.issue_cert(
            name,
            not_before=yesterday - timedelta(days=10),
            not_after=yesterday if kind == "expired" else yesterday + timedelta(days=10),
        )
        return self._written(made, f"server {kind}")

    def of_client(self, name: str, *, by_stranger: bool = False) -> Certificate:
        """The certificate of a client that logs in as `name`."""
        issuer = self._strangers if by_stranger else self._ours
        made = issuer.issue_cert("client.example.org", common_name=name)
        return self._written(made, f"client {'of a stranger' if by_stranger else 'of ours'}")

    def _written(self, made: trustme.LeafCert, name: str) -> Certificate:
        written = Certificate(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(str(written.cert))
        made.private_key_pem.write_to_path(str(written.key))
        return written
