"""The search for the largest batch, on memory that grows as a formula says."""

import pytest

from experiments.scale import capacity
from experiments.scale.capacity import next_batch
from experiments.scale.programs import Job
from experiments.scale.records import Records

JOB = Job("h100_x1", "b32", batch=128)


@pytest.fixture
def records(tmp_path):
    """`bytes of a batch -> records that "compile" so`; bytes are None where the compiler would refuse."""

    def make(size):
        def measure(job):
            total = size(job.batch)
            found = {"operations": 1, "compile_seconds": 0.0, "fits": total is not None}
            if total is None:
                return found | {"refusal": "no"}
            return found | {"arguments": total, "results": 0, "temporary": 0}

        return Records(tmp_path, measure=measure, report=lambda text: None)

    return make


@pytest.mark.parametrize(("fixed", "each"), [(2e9, 90e6), (2e9, 1e6), (1e9, 900e6)])
def test_memory_that_is_a_line_needs_three_programs(records, fixed, each):
    made = records(lambda batch: int(fixed + each * batch))
    found = capacity.find(made, JOB, 16)
    largest = int((16e9 - fixed) / each) // 8 * 8
    assert (found.fits, found.settled) == (largest, True)
    assert found.bytes == int(fixed + each * largest) <= 16e9
    assert len(made.all()) <= 4


@pytest.mark.parametrize("limit", [100, 333, 1000])
def test_sizes_that_the_compiler_refuses_are_halved_away(records, limit):
    made = records(lambda batch: int(1e9 + 1e6 * batch) if batch <= limit else None)
    found = capacity.find(made, JOB, 16)
    assert found.fits <= limit < found.fails
    assert found.settled == (found.fails - found.fits <= 8 or found.fails <= capacity.CLOSE * found.fits)


def test_a_compiler_that_spares_memory_near_its_limit_is_no_line_and_ends_all_the_same(records):
    made = records(lambda batch: int(min(1e9 + 100e6 * batch, 12e9 + 5e6 * batch)))
    found = capacity.find(made, JOB, 16)
    assert found.fits and 12e9 + 5e6 * found.fits <= 16e9
    assert len(made.all()) <= capacity.TRIES + 1


def test_what_never_fits_is_said(records):
    found = capacity.find(records(lambda batch: int(50e9)), JOB, 16)
    assert (found.fits, found.bytes) == (None, None) and found.fails is not None


def test_the_answer_comes_from_what_was_kept(records):
    made = records(lambda batch: int(2e9 + 90e6 * batch))
    found = capacity.find(made, JOB, 16)
    again = records(lambda batch: pytest.fail("compiled again"))
    assert capacity.find(again, JOB, 16) == capacity.known(again, JOB, 16) == found


def test_only_the_batch_may_differ(records):
    made = records(lambda batch: int(2e9 + 90e6 * batch))
    made.make(JOB._replace(remat="layers", batch=8))
    with pytest.raises(ValueError, match="nothing was compiled"):
        capacity.known(made, JOB, 16)


def test_nothing_is_begun_when_time_is_up(records):
    made = records(lambda batch: int(2e9 + 1e6 * batch))
    found = capacity.find(made, JOB, 16, until=0)
    assert len(made.all()) == 1 and not found.settled


def test_a_single_size_is_doubled_or_halved():
    assert next_batch({128: 10}, 100, 8) == 256
    assert next_batch({128: 200}, 100, 8) == 64
    assert next_batch({128: None}, 100, 8) == 64
