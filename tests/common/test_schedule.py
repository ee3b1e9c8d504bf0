"""Learning rate and momentum: `python -m pytest tests/common/test_schedule.py`."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.schedule import lr_scale, muon_momentum, run_progress
from common.settings import Settings

RUN = Settings(iterations=1000, max_wallclock_seconds=100.0, warmdown_fraction=0.4, muon_momentum=0.95,
               muon_momentum_warmup_start=0.85, muon_momentum_warmup_steps=50)
NO_CAP = Settings(iterations=1000, max_wallclock_seconds=0.0)


@pytest.mark.parametrize("run, step, seconds, progress", [
    (RUN, 0, 0.0, 0.0), (RUN, 500, 10.0, 0.5), (RUN, 100, 70.0, 0.7),
    (RUN, 1000, 0.0, 1.0), (RUN, 3, 100.0, 1.0), (RUN, 3, 250.0, 1.0),
    (NO_CAP, 0, 1e9, 0.0), (NO_CAP, 250, 1e9, 0.25), (Settings(iterations=0), 0, 0.0, 1.0),
])
def test_progress_is_the_larger_share(run, step, seconds, progress):
    assert run_progress(run, step, seconds) == progress


@pytest.mark.parametrize("fraction, progress, scale", [
    (0.4, 0.0, 1.0), (0.4, 0.6, 1.0), (0.4, 0.8, 0.5), (0.4, 0.9, 0.25), (0.4, 1.0, 0.0),
    (1.0, 0.0, 1.0), (1.0, 0.5, 0.5), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0),
])
def test_warmdown(fraction, progress, scale):
    assert lr_scale(Settings(warmdown_fraction=fraction), progress) == pytest.approx(scale, abs=1e-12)


def test_a_slow_machine_warms_down_by_time_and_a_short_run_by_steps():
    by_time = [lr_scale(RUN, run_progress(RUN, step, 25.0 * step)) for step in range(5)]
    assert by_time == pytest.approx([1.0, 1.0, 1.0, 0.625, 0.0])
    short = Settings(iterations=4, warmdown_fraction=0.5)
    assert [lr_scale(short, run_progress(short, step, 0.0)) for step in range(5)] == [1.0, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("step, momentum", [(0, 0.85), (25, 0.90), (50, 0.95), (51, 0.95), (10**6, 0.95)])
def test_momentum(step, momentum):
    assert muon_momentum(RUN, step) == pytest.approx(momentum, abs=1e-12)


def test_momentum_without_warmup():
    assert muon_momentum(Settings(muon_momentum_warmup_steps=0), 0) == 0.95


@settings(deadline=None, database=None, derandomize=True)
@given(st.integers(0, 10**9), st.floats(0, 1e9), st.integers(0, 10**9), st.floats(0, 1e9), st.floats(0, 1),
       st.integers(0, 10**9), st.floats(0, 1e9))
def test_the_learning_rate_falls_and_stays_in_range(iterations, cap, step, seconds, fraction, more_steps, more_seconds):
    run = Settings(iterations=iterations, max_wallclock_seconds=cap, warmdown_fraction=fraction)
    scale = lr_scale(run, run_progress(run, step, seconds))
    assert 0.0 <= lr_scale(run, run_progress(run, step + more_steps, seconds + more_seconds)) <= scale <= 1.0
