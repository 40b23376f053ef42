"""Certificates that are valid for a test run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

# An own configuration, because the openssl.cnf of systems add different extensions to a certificate.
REQUEST = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
commonName = localhost
[extensions]
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
subjectAltName = DNS:localhost
"""


class Pem(NamedTuple):
    """A self-signed certificate for localhost, its key in plain and encrypted, and a file that is neither."""

    cert: Path
    key: Path
    encrypted_key: Path
    rubbish: Path


def make(folder: Path) -> Pem:
    """A new key and its files. The openssl command makes them, because the standard library cannot."""
    pem = Pem(folder / "cert.pem", folder / "key.pem", folder / "encrypted.pem", folder / "rubbish.pem")
    request = folder / "request.cnf"
    request.write_text(REQUEST)
    pem.rubbish.write_text("no certificate")
    openssl("ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", pem.key)
    openssl("req", "-x509", "-config", request, "-key", pem.key, "-days", "2", "-out", pem.cert)
    openssl("pkcs8", "-topk8", "-in", pem.key, "-out", pem.encrypted_key, "-passout", "pass:secret")
    return pem


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
