"""The CUDA step on a fake device: `python -m pytest tests/device/test_step.py`. It is compiled for an H100, not run."""
import json
import sys

import pytest

from tests.device.cost import COLUMNS, COSTS, counted, spilling

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    sys.platform == "darwin", reason="Triton, which compiles for CUDA, has no macOS wheel")]
TABLE = json.loads(COSTS.read_text())
STEPS = [name for name in TABLE["cases"] if "()" not in name]
QUIET = [name for name in TABLE["cases"] if name.startswith(("update_average", "sgd_step", "undo_sgd"))]


@pytest.fixture(scope="session")
def found():
    """All cases: see tests/device/cases.py."""
    return counted("cases")


def test_the_table_is_of_these_cases_and_of_this_pytorch(found):
    """Else: python -m tests.device.cost --update."""
    assert (found["torch"], [*found["cases"]]) == (TABLE["torch"], [*TABLE["cases"]])


@pytest.mark.parametrize("name", TABLE["cases"])
def test_nothing_costs_more_than_the_table_says(found, name):
    """Where it may: python -m tests.device.cost --update, and the difference is part of the change. Milliseconds are
    those of the roofline, which knows what kernel the trainer prefers for attention."""
    more = {column: (found["cases"][name][column], TABLE["cases"][name][column]) for column in (*COLUMNS, "ms")}
    assert {column: pair for column, pair in more.items() if pair[0] > pair[1]} == {}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_one_graph_in_float32_masters(found, name):
    case = found["cases"][name]
    assert (case["graphs"], case["graph_breaks"]) == (1, {})
    assert set(map(tuple, case["dtypes"].values())) == {("float32",)} and "gradients" in case["dtypes"]


@pytest.mark.parametrize("name", STEPS)
def test_the_host_waits_once_a_step_for_the_step_before(found, name):
    case = found["cases"][name]
    assert (case["host_reads"], case["host_numbers"]) == ([], []) and case["waits"] in ([], ["event"])


@pytest.mark.parametrize("name", QUIET)
def test_the_host_waits_for_no_update_of_weights(found, name):
    case = found["cases"][name]
    assert (case["host_reads"], case["host_numbers"], case["waits"]) == ([], [], [])


def test_every_generated_kernel_compiles_for_sm_90_and_no_more_spill_than_the_table_says(found):
    assert len(found["kernels"]) > 50
    assert len(spilling(found)) <= TABLE["spilling kernels"], spilling(found)
    assert all(0 < registers <= 255 for forms in found["kernels"].values() for _, registers, _ in forms)


def test_what_a_step_must_not_do_is_seen():
    """One of each, in a process of its own."""
    assert counted("defects") == {
        "a loss that is read": {"host_reads": 1},
        "a number that is sent": {"host_numbers": 1},
        "a copy of memory that is not pinned": {"host_numbers": 1},
        "a copy into memory that is not pinned": {"host_reads": 1},
        "two events": {"waits": 2},
        "the device": {"waits": 1},
        "nothing": {},
    }
