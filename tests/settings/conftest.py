"""A certificate for all tests of settings."""

from __future__ import annotations

import pytest

from settings import pem as pem_files
from settings.pem import Pem


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return pem_files.make(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="session")
def renewed(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    """Another certificate with the same name and another key."""
    return pem_files.make(tmp_path_factory.mktemp("renewed"))
