"""What several files about pages share."""
import pytest

from tests.conftest import missing
from tests.records.browser import Browser, find_program


@pytest.fixture(scope="session")
def browser(pytestconfig):
    if not find_program():
        missing(pytestconfig, "no Chromium: `apt-get install chromium`, or `brew install --cask chromium`, provides it")
    with Browser() as chromium:
        yield chromium
