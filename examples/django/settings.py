"""Settings of a Django site with a chat. hubbub itself is configured by DATABASE_URL, REDIS_URL and DB_SCHEMA.

Django's own tables are here in SQLite. If both use one PostgreSQL database, set DB_SCHEMA=chat for hubbub's
tables. Each of them runs its own migrations.
"""

import os
from pathlib import Path

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")
ROOT_URLCONF = "urls"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "chat.Problems",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path.cwd() / "site.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
SESSION_COOKIE_SAMESITE = "Lax"
# Behind TLS, as in production: SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
