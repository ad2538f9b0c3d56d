"""The demo's example users."""

from pathlib import Path

from slmrec.commands.demo import _write_examples
from slmrec.data.dataset import Dataset
from slmrec.serving.examples import read_examples


def test_example_users_are_written_for_the_page(tiny_dataset: Dataset, tmp_path: Path) -> None:
    written = _write_examples(tiny_dataset, tmp_path / "examples.jsonl")
    assert len(written) == 20
    assert [example.model_dump() for example in read_examples(tmp_path / "examples.jsonl")] == written
    assert written[0]["history"] == [
        tiny_dataset.item_ids[int(item) - 1].as_py() for item in tiny_dataset.flat[: tiny_dataset.offsets[1]]
    ]
