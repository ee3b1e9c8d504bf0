"""What several files about pages share."""
import pytest

from tests.records.browser import Browser


@pytest.fixture(scope="session")
def browser():
    with Browser() as chromium:
        yield chromium
