"""How many samples fit at once: the search, against a machine whose memory is made up; and the rate of a batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmrec.data.dataset import Samples
from slmrec.errors import TrainingError
from slmrec.training import batch_size, memory
from slmrec.training.batch_size import USABLE, largest_that_fits
from slmrec.training.optimization import peak_learning_rate
from slmrec.training.samples import TrainingSamples

CPU = torch.device("cpu")
REMEDIES = "set finetune.train.gradient_checkpointing=true"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Sets what is free and what a step of n samples takes; the sizes that are then tried."""

    def set_up(free: float, fixed: float, each: float) -> list[int]:
        tried: list[int] = []

        def growth(step: Callable[[], None]) -> float:
            step()
            return fixed + each * tried[-1]

        monkeypatch.setattr(batch_size, "free_mb", lambda: free)
        monkeypatch.setattr(batch_size, "growth_mb", growth)
        return tried

    return set_up


@pytest.mark.parametrize(
    ("free", "most", "trained_mb", "expected"),
    [
        (1e6, 64, 0, 64),
        (1e6, 100, 0, 100),
        (1000, 100, 0, 50),
        (1000, 64, 200, 16),
        (1000, 7, 246, 4),
        (500, 64, 0, 32),
    ],
)
def test_it_is_the_most_that_fits(
    machine: Callable[..., list[int]], free: float, most: int, trained_mb: float, expected: int
) -> None:
    tried = machine(free, 20 + trained_mb, 10)  # with its gradients
    assert largest_that_fits(tried.append, most, trained_mb, CPU, "finetune", REMEDIES) == expected
    assert max(tried) == expected  # what would not fit was foreseen, not run


@given(st.integers(1, 300), st.floats(1, 1e4), st.floats(0, 50), st.floats(0.1, 50))
def test_nothing_is_run_that_does_not_fit(most: int, free: float, fixed: float, each: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tried: list[int] = []
        patch.setattr(batch_size, "free_mb", lambda: free)
        patch.setattr(batch_size, "growth_mb", lambda step: (step(), fixed + each * tried[-1])[1])
        if fixed + each > USABLE * free:
            with pytest.raises(TrainingError, match="distill: not even one sample fits into memory"):
                largest_that_fits(tried.append, most, 0, CPU, "distill", REMEDIES)
            return
        found = largest_that_fits(tried.append, most, 0, CPU, "distill", REMEDIES)
    assert found == max(tried) or fixed + each * max(tried) > USABLE * free
    assert 1 <= found <= most


def test_no_room_is_told_with_a_remedy(machine: Callable[..., list[int]]) -> None:
    tried = machine(100, 90, 10)
    with pytest.raises(
        TrainingError,
        match=r"finetune: not even one sample fits into memory: 30 MiB are free .*finetune\.train\.gradient",
    ):
        largest_that_fits(tried.append, 8, 25, CPU, "finetune", REMEDIES)


def test_a_system_that_tells_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "can_measure_growth", lambda: False)
    with pytest.raises(TrainingError, match=r"finetune\.train\.per_device_train_batch_size is auto, but .* give a nu"):
        largest_that_fits(lambda size: None, 8, 0, CPU, "finetune", REMEDIES)


def test_the_longest_samples_come_first() -> None:
    ends = np.array([3, 9, 5, 30])
    samples = Samples.of(np.arange(40), np.zeros(4, np.int64), ends, np.arange(4))
    assert TrainingSamples(samples, 50, False).longest(2).tolist() == [3, 1]
    assert set(TrainingSamples(samples, 5, False).longest(3).tolist()) == {1, 2, 3}


def test_the_rate_of_the_reference_is_its_own() -> None:
    assert peak_learning_rate(1e-3, 256, 256) == 1e-3
    assert peak_learning_rate(1e-3, 1024, 256) == 2e-3
    assert peak_learning_rate(1e-3, 7, None) == 1e-3


@pytest.mark.skipif(not memory.can_measure_growth(), reason="Linux counts peaks anew")
def test_growth_is_what_a_step_takes_and_the_peak_of_the_stage_stays() -> None:
    memory.reset_peak()
    torch.ones(40, 2**20 // 4)  # 40 MiB, given back
    before = memory.peak_rss_mb()
    small, large = (memory.growth_mb(lambda size=size: torch.ones(size, 2**20 // 4)) for size in (10, 80))
    assert 75 < large < 95 and small < 25
    assert memory.peak_rss_mb() >= before


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_LIMITS", ((limit, used),))
    without = memory.free_mb()
    limit.write_text(f"{300 * 2**20}\n")
    used.write_text(f"{100 * 2**20}\n")
    assert memory.free_mb() == 200
    limit.write_text("max\n")
    assert memory.free_mb() == pytest.approx(without, rel=0.2)
