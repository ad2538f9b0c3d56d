"""Steps of several processes: together they are the steps of one."""

import numpy as np
import pytest

from slmrec.config import TrainConfig
from slmrec.data.dataset import Ints, Samples
from slmrec.training.samples import Step, Steps, TrainingSamples

ENDS = np.arange(3, 40)
DATA = TrainingSamples(Samples.of(np.tile(np.arange(1, 9), 6), ENDS - 1 - ENDS % 4, ENDS, np.arange(37)), 5, True)


def steps(number: int, monkeypatch: pytest.MonkeyPatch, at_once: int = 4, **settings: object) -> list[list[Step]]:
    """Return the parts of all processes in each step of an epoch."""
    monkeypatch.setenv("WORLD_SIZE", str(number))
    parts = []
    for rank in range(number):
        monkeypatch.setenv("RANK", str(rank))
        divided = Steps(DATA, TrainConfig.model_validate(settings), seed=1)
        parts.append(list(divided.of_epoch(0, at_once)))
        assert len(parts[-1]) == divided.num_steps()
    return [list(step) for step in zip(*parts, strict=True)]


def samples_of(step: list[Step]) -> Ints:
    return np.sort(np.concatenate([rows for part in step for rows in part.micro_batches[: part.num_counted]]))


@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (1, {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}),
        (2, {"per_device_train_batch_size": 6}),
        (4, {"per_device_train_batch_size": 3}),
        (6, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}),
        (5, {"per_device_train_batch_size": "auto", "reference_batch_size": 12}),
    ],
    ids=str,
)
def test_the_samples_of_a_step_depend_on_their_number_alone(
    number: int, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = steps(1, monkeypatch, at_once=12, per_device_train_batch_size=12)
    divided = steps(number, monkeypatch, **settings)
    assert len(whole) == len(divided) == 4  # 12 samples, 12, 12 and 1, which all processes wait for
    for one, several in zip(whole, divided, strict=True):
        assert np.array_equal(samples_of(one), samples_of(several))
        assert len({len(part.micro_batches) for part in several}) == 1  # sharded layers are gathered in each pass
        assert all(part.micro_batches for part in several)
        assert max(len(rows) for part in several for rows in part.micro_batches) <= 4
