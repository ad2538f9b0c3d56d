"""A tiny student and teacher behind one server, for all tests that change neither."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Client, serving, write_model

from slmrec.data.dataset import Dataset
from slmrec.serving.examples import Example


@pytest.fixture(scope="session")
def student(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("student"), tiny_dataset)


@pytest.fixture(scope="session")
def client(student: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    teacher = write_model(tmp_path_factory.mktemp("teacher"), tiny_dataset, seed=1)
    examples = [Example(user_id="ann", history=["i01", "i02", "nope"])]
    with serving(student, teacher=teacher, examples=examples) as found:
        yield found


@pytest.fixture
def slowed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Client, float], None]:
    """Makes every batch of a server take some seconds."""

    def slow(client: Client, seconds: float) -> None:
        engine = client.server.engines["student"]
        answer = engine.answer
        monkeypatch.setattr(engine, "answer", lambda requests: (time.sleep(seconds), answer(requests))[1])

    return slow
