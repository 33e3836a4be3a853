import pytest

from tests.conform.models import Models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Tiny models in folders."""
    return Models(tmp_path_factory.mktemp("models"))
