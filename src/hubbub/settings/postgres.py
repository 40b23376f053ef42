"""Where PostgreSQL is, and how patient to be with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Literal

from hubbub.errors import Invalid
from hubbub.settings.tls import Pem, SslMode, Verified, check_absent, check_pair, client_context
from hubbub.settings.variables import POSTGRES, check


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """One PostgreSQL database, how to log in, and the limits of its pool.

    Size, idle time and connect time of the pool default to the seed's 20, 30 s and 2 s. `deadline_seconds`
    bounds a whole operation: waiting for a connection, the query and the release. Turn `prepared_statements`
    off behind a pooler that hands out connections by the transaction. `sslmode` is that of libpq.
    """

    host: str
    port: int = 5432
    database: str
    user: str
    password: str | None = field(default=None, repr=False)
    sslmode: SslMode = "prefer"
    ssl_root_cert: Path | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    pool_size: int = 20
    idle_timeout_seconds: float = 30
    connect_timeout_seconds: float = 2
    deadline_seconds: float = 10
    prepared_statements: bool = True

    def __post_init__(self) -> None:
        check(self, POSTGRES)
        check_pair(Pem("DB_SSLCERT", self.ssl_cert), Pem("DB_SSLKEY", self.ssl_key))
        if self.sslmode.startswith("verify") and self.ssl_root_cert is None:
            raise Invalid("DB_SSLROOTCERT", f"is missing: {self.sslmode} checks the server's certificate by it")
        if self.sslmode in {"disable", "prefer"}:
            # Whoever gives a root certificate believes that the server is verified. Under these it is not.
            unused = f"is not used under sslmode {self.sslmode}: choose verify-full"
            check_absent(
                Pem("DB_SSLROOTCERT", self.ssl_root_cert), Pem("DB_SSLCERT", self.ssl_cert), reason=unused
            )

    def ssl(self) -> SSLContext | Literal["disable", "prefer"]:
        """What `asyncpg.connect(ssl=...)` takes for this sslmode.

        As in libpq, `require` encrypts without verifying, but verifies as `verify-ca` does where there is a root
        certificate. The context is one for all connections, so it must not be altered; the files are read again,
        from disk and without awaiting, by the first call after they changed: the next connection takes up renewed
        certificates, and so does a hub that is restarted. Raises Invalid for a file that holds no certificate or
        no key.
        """
        if self.sslmode == "disable" or self.sslmode == "prefer":  # noqa: PLR1714 - mypy narrows by == only
            return self.sslmode
        # Not the context that asyncpg makes of a mode: that one also obeys PGSSLROOTCERT and ~/.postgresql.
        return client_context(
            Pem("DB_SSLROOTCERT", self.ssl_root_cert),
            Pem("DB_SSLCERT", self.ssl_cert),
            Pem("DB_SSLKEY", self.ssl_key),
            self._verified(),
        )

    def _verified(self) -> Verified:
        if self.sslmode == "verify-full":
            return "certificate and name"
        return "nothing" if self.ssl_root_cert is None else "certificate"
