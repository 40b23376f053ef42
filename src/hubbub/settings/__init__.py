"""The settings of both servers, written in code or read from the environment.

The variables are DB_* and REDIS_*, or DATABASE_URL and REDIS_URL; `.env.example` lists them all with their
defaults. DATABASE_URL, DB_PASSWORD, REDIS_URL and REDIS_PASSWORD may be given as a file instead, by the same
name with _FILE after it, as container platforms provide secrets. An empty variable counts as one not given.

If there is a URL, then host, port and database come from it alone, so that a DB_PORT left over from another server
has no effect. User, password and TLS come from the URL as far as it carries them, and otherwise from their
variables, so that a URL without a password can be combined with DB_PASSWORD_FILE. `redis://` leaves TLS open, so
REDIS_TLS=true holds beside it. Limits (DB_POOL_SIZE, DB_DEADLINE_SECONDS, ...) always have their own variable.

An unusable value is refused as `Invalid`, whose field is the name of the variable, also for settings written in
code. The reason never repeats the value: a misplaced password, or the front of one at which a URL was cut, must
not reach a log.
"""

from hubbub.settings.settings import PostgresSettings, RedisSettings, Settings, postgres_from_env
from hubbub.settings.tls import SslMode
from hubbub.settings.variables import VARIABLES, Address

__all__ = ["VARIABLES", "Address", "PostgresSettings", "RedisSettings", "Settings", "SslMode", "postgres_from_env"]
