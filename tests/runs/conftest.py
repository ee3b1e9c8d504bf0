"""What several files about runs share."""
import pytest

from tests.faults import Run


@pytest.fixture(scope="session")
def whole(tmp_path_factory, data_path):
    """The model file of a tiny run that nothing happens to, by backend and changed settings; each is made once."""
    made = {}

    def model(backend, **changes):
        key = backend, *changes.items()
        if key not in made:
            run = Run(backend, tmp_path_factory.mktemp("whole"), data_path, **changes)
            assert run.wait() == [0], run.text()
            made[key] = run.model()
        return made[key]
    return model
