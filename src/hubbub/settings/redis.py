"""Where Redis is, and how patient to be with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext

from hubbub.errors import Invalid
from hubbub.settings.tls import Pem, check_absent, check_pair, client_context
from hubbub.settings.variables import REDIS, check


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """One Redis or Valkey server and how to log in. `deadline_seconds` bounds a whole operation.

    With `tls` the certificate and the name of the server are always verified: by `ssl_root_cert`, or without it
    by the authorities that the system trusts.
    """

    host: str
    port: int = 6379
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: bool = False
    ssl_root_cert: Path | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    connect_timeout_seconds: float = 2
    deadline_seconds: float = 5

    def __post_init__(self) -> None:
        check(self, REDIS)
        check_pair(Pem("REDIS_CERT_FILE", self.ssl_cert), Pem("REDIS_KEY_FILE", self.ssl_key))
        if self.username is not None and self.password is None:
            # The URL of someone who wrote the password where the user stands looks just so.
            raise Invalid("REDIS_PASSWORD", "is missing; one without a user is written redis://:password@host")
        if not self.tls:
            unused = "is not used without TLS: set REDIS_TLS=true or write rediss://"
            check_absent(
                Pem("REDIS_CA_FILE", self.ssl_root_cert), Pem("REDIS_CERT_FILE", self.ssl_cert), reason=unused
            )

    def ssl(self) -> SSLContext | None:
        """The TLS context to connect with; None without `tls`.

        It is one for all connections, so it must not be altered; the files are read again, from disk and without
        awaiting, by the first call after they changed: the next connection takes up renewed certificates. The
        authorities that the system trusts are read once a process. Raises Invalid for a file that holds no
        certificate or no key.
        """
        if not self.tls:
            return None
        return client_context(
            Pem("REDIS_CA_FILE", self.ssl_root_cert),
            Pem("REDIS_CERT_FILE", self.ssl_cert),
            Pem("REDIS_KEY_FILE", self.ssl_key),
            "certificate and name",
        )
