"""TLS towards a server: which files belong together, and the context made of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, SSLCertVerificationError, SSLContext, SSLError
from typing import Literal, NamedTuple

from hubbub.errors import Invalid

SslMode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]

Verified = Literal["nothing", "certificate", "certificate and name"]
"""How far the server is verified."""


class Pem(NamedTuple):
    """A PEM file and the name of the variable that gives it."""

    variable: str
    file: Path | None


def check_files(root: Pem, cert: Pem, key: Pem, *, unused: str | None) -> None:
    """Raises: Invalid (a certificate without its key, or the reverse; any file, if there is a reason `unused`)."""
    if (cert.file is None) != (key.file is None):
        absent = cert if cert.file is None else key
        raise Invalid(absent.variable, "is missing: a client certificate and its key go together")
    for pem in (root, cert, key):
        if unused is not None and pem.file is not None:
            raise Invalid(pem.variable, unused)


def client_context(verified: Verified, root: Pem, cert: Pem, key: Pem) -> SSLContext:
    """The context of these files. It is the same object until a file changes, and must not be altered.

    Without a `root` the server is verified by the authorities that the system trusts, read once per process.
    Reads from disk without awaiting.
    Raises: Invalid (a file holds no certificate or no key).
    """
    versions = tuple(_version(pem.file) for pem in (root, cert, key))
    return _context(verified, root, cert, key, versions)


def _version(file: Path | None) -> tuple[int, ...]:
    """Values of which one changes when a file is written or replaced, or when a link points to another file."""
    if file is None:
        return ()
    try:
        stat = file.stat()
    except OSError:
        return ()  # reading it fails as well, with an error that names its variable
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_size


def failure_in(error: BaseException) -> str | None:
    """Why TLS failed, in OpenSSL's words, if `error` or one of its causes is a failure of TLS.

    A refused client certificate is not covered, because under TLS 1.3 the server closes the connection afterwards.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, SSLCertVerificationError):
        return f"the server's certificate is refused: {cause.verify_message}"
    return None if cause is None else cause.reason or "no agreement"


@lru_cache(maxsize=16)  # bounded, so that the contexts of replaced files are freed in the end
def _context(verified: Verified, root: Pem, cert: Pem, key: Pem, _versions: object) -> SSLContext:
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.check_hostname = verified == "certificate and name"
    if verified == "nothing":
        context.verify_mode = CERT_NONE
    elif root.file is None:
        context.load_default_certs()
    try:
        if root.file is not None:
            context.load_verify_locations(cafile=root.file)
    except OSError as error:  # ssl.SSLError is one
        raise Invalid(root.variable, "holds no certificate that OpenSSL can read") from error
    try:
        if cert.file is not None:
            # Without a password OpenSSL would prompt on the terminal for that of an encrypted key, and wait.
            context.load_cert_chain(cert.file, key.file, password="")
    except OSError as error:
        reason = "and its key are not a pair that OpenSSL can read without a password"
        raise Invalid(cert.variable, reason) from error
    return context
