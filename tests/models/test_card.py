"""Cards: what was measured, how, and in the form that hubs read."""

from pathlib import Path

import pytest
from artefacts import sasrec
from huggingface_hub import ModelCard

from slmrec import Recommender
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError
from slmrec.models.card import About, Measured, card
from slmrec.models.folder import save_recommender

SETTINGS = {
    "split": "leave_one_out, test",
    "eval_mode": "full",
    "exclude_history": True,
    "num_negatives": None,
    "ties": "broken at random",
    "seed": 7,
}
COMMAND = "slmrec evaluate --config c.yaml --output RUN"
FULL = Measured("full_history_excluded", SETTINGS, {"hit@10": 0.25, "ndcg@10": 0.125}, 1234, 40, COMMAND)
SAMPLED = Measured("sampled_20", SETTINGS | {"num_negatives": 20}, {"hit@10": 0.5}, 1234, 40, COMMAND)
ABOUT = About("Mine", {"ndcg@10": 0.0625}, {"sources": [{"file": "shop.txt"}]}, (FULL, SAMPLED))


def test_a_card_tells_protocol_split_seed_and_command() -> None:
    text = " ".join(card(sasrec(), ABOUT, "i00", "items.parquet").split())
    assert "Protocol `full_history_excluded`: split `leave_one_out, test`, 1,234 users, ranked against all 40" in text
    assert f"history excluded, ties broken at random, seed 7; measured by `{COMMAND}`" in text
    assert "Protocol `sampled_20`: split `leave_one_out, test`, 1,234 users, ranked against 20 sampled" in text
    order = [text.index(f"| {row} |") for row in ("hit@10 | 0.2500", "hit@10 | 0.5000", "ndcg@10 | 0.0625")]
    assert order == sorted(order)


def test_the_hub_reads_the_metrics() -> None:
    data = ModelCard(card(sasrec(), ABOUT, "i00", "items.parquet")).data
    assert (data.model_name, data.library_name) == ("Mine", "slmrec")
    found = [(r.dataset_config, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results or []]
    assert found == [
        ("full_history_excluded", "test", "hit@10", 0.25),
        ("full_history_excluded", "test", "ndcg@10", 0.125),
        ("sampled_20", "test", "hit@10", 0.5),
        (None, "validation", "ndcg@10", 0.0625),
    ]
    first = (data.eval_results or [])[0]
    assert (first.task_type, first.dataset_name) == ("sequential-recommendation", "shop.txt")
    assert "&id" not in card(sasrec(), ABOUT, "i00", "items.parquet")  # what is alike is written out, for people
    assert first.dataset_args == {"protocol": "full_history_excluded", **SETTINGS}


def test_nothing_measured_is_nothing_told() -> None:
    text = card(sasrec(), About(), "i00", "items.parquet")
    assert "model-index" not in text and "| metric |" not in text and "# SLMRec\n" in text


def test_results_of_another_form_are_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    save_recommender(sasrec(), tiny_dataset, tmp_path, "tiny", {})
    about = tmp_path / "about.json"
    about.write_text(about.read_text().replace('"measured": []', '"measured": [{"protocol": "full"}]'))
    with pytest.raises(
        CheckpointError, match=r"about\.json: .*measured\.0\.settings: Field required.*copy the folder again"
    ):
        Recommender.from_pretrained(tmp_path)
