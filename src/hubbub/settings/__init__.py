"""Where the servers are and how patient to be with them: written in code, or read from the environment.

The variables are DB_* and REDIS_*, or DATABASE_URL and REDIS_URL; `.env.example` lists them all with their
defaults. DATABASE_URL, DB_PASSWORD, REDIS_URL and REDIS_PASSWORD may be given as a file instead, by the same
name with _FILE after it, as container platforms hand out secrets. An empty variable counts as one not given.

Where there is a URL, host, port and database come from it alone, so that a DB_PORT left over from another
server never bends it. User, password and TLS come from the URL as far as it carries them and else from their
variables, so that a URL without a password can go with DB_PASSWORD_FILE; `redis://` says nothing about TLS, and
REDIS_TLS=true holds beside it. Limits (DB_POOL_SIZE, DB_DEADLINE_SECONDS, ...) always have their own variable.

A value that cannot be used is refused as `Invalid`, whose field is the name of the variable, also where the
settings were written in code. The reason never repeats the value: a password in the wrong place, or the front
of one at whose unescaped character a URL was cut, must not reach a log.
"""

from hubbub.settings.postgres import PostgresSettings
from hubbub.settings.redis import RedisSettings
from hubbub.settings.settings import Settings, postgres_from_env
from hubbub.settings.tls import SslMode
from hubbub.settings.variables import VARIABLES

__all__ = ["VARIABLES", "PostgresSettings", "RedisSettings", "Settings", "SslMode", "postgres_from_env"]
