"""The folder that cases run in."""

import pytest

from tests.fuzz import shop as shops


@pytest.fixture(scope="session")
def shop(trained, tmp_path_factory):
    """A shop that is renewed before each case."""
    return shops.opened(tmp_path_factory.mktemp("fuzz"), trained)
