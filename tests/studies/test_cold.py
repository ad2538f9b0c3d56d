"""`slmrec cold`: what leaves the data, how withheld items get rows, ranks against naive ones, and resumption."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from artefacts import decoder, ensemble, sasrec
from runs import read_json, refused

from slmrec import prepare
from slmrec.commands.main import main
from slmrec.data.batching import pad_histories
from slmrec.data.dataset import Dataset
from slmrec.evaluation.statistics import compare_means, compare_ratio
from slmrec.models.folder import load_recommender
from slmrec.models.item_tables import item_rows, mean_of_others, replace_rows, text_columns
from slmrec.studies.cold_report import user_values
from slmrec.studies.withheld import withheld_items, write_target_users

ITEMS = np.array([3, 7, 20])


@pytest.fixture(scope="module")
def recipe(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = yaml.safe_load(tiny_recipe)
    content["finetune"]["backbone_config"]["hidden_size"] = 16
    content["evaluate"] = {"protocols": ["full_history_excluded"], "splits": ["valid"], "timing_users": 10}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cold")
    command = ["cold", "--config", str(recipe), "--output", str(output), "--share", "0.2"]
    assert main(command) == 0
    return output


def test_withheld_items_leave_the_log_and_stay_in_the_catalogue(finished: Path) -> None:
    whole, left = (Dataset.load(finished / name) for name in ("prepare", "cold/run/prepare"))
    items = withheld_items(finished / "cold" / "run" / "prepare")
    assert len(items) == len(set(items.tolist())) == 8 and (whole.train_counts()[items] >= 5).all()
    assert not np.isin(left.flat, items).any() and left.item_ids.equals(whole.item_ids)
    assert len(left.flat) == (~np.isin(whole.flat, items)).sum()
    trained = set(zip(*(column.tolist() for events in left.train_events() for column in events), strict=True))
    assert trained <= set(zip(*(column.tolist() for events in whole.train_events() for column in events), strict=True))


def test_the_users_are_those_whose_target_is_withheld(finished: Path, tmp_path: Path) -> None:
    whole, items = Dataset.load(finished / "prepare"), withheld_items(finished / "cold" / "run" / "prepare")
    for split, number in (("valid", -2), ("test", -1)):
        folder = tmp_path / split
        folder.mkdir()
        num_targets = write_target_users(finished / "prepare", folder, split, items)  # type: ignore[arg-type]
        samples = Dataset.load(folder).held_out(split)  # type: ignore[arg-type]
        starts, ends, users = samples.spans(np.arange(len(samples)))
        found = {
            int(user): samples.flat[start : end + 1].tolist()
            for user, start, end in zip(users, starts, ends, strict=True)
        }
        expected = {}
        for user in range(whole.num_users):
            own = whole.flat[whole.offsets[user] : whole.offsets[user + 1]].tolist()
            place = len(own) + number
            if own[place] in items:
                expected[user] = [item for item in own[:place] if item not in items] + [own[place]]
        assert num_targets == len(expected)
        assert found == {user: own for user, own in expected.items() if len(own) > 1}


def test_users_of_a_temporal_split(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    events = pa.table(
        {
            "user_id": np.repeat(np.arange(30), 8),
            "item_id": generator.integers(0, 12, 240),
            "timestamp": generator.permutation(240),
        }
    )
    whole = Dataset.load(prepare(events, tmp_path / "all", split="temporal", valid_share=0.2, test_share=0.2))
    assert whole.cuts is not None
    for split, cut in (("valid", 0), ("test", 1)):
        folder = tmp_path / split
        folder.mkdir()
        num_targets = write_target_users(tmp_path / "all", folder, split, ITEMS[:2])  # type: ignore[arg-type]
        expected = {}
        for user, cuts in enumerate(whole.cuts):
            own = whole.flat[whole.offsets[user] : whole.offsets[user + 1]].tolist()
            place, end = cuts[cut], cuts[1] if cut == 0 else len(own)
            if 0 < place < end and own[place] in ITEMS[:2]:
                expected[user] = [item for item in own[:place] if item not in ITEMS[:2]] + [own[place]]
        samples = Dataset.load(folder).held_out(split)  # type: ignore[arg-type]
        starts, ends, users = samples.spans(np.arange(len(samples)))
        spans = zip(users.tolist(), starts, ends, strict=True)
        found = {user: samples.flat[start : stop + 1].tolist() for user, start, stop in spans}
        assert num_targets == len(expected) > 0
        assert found == {user: own for user, own in expected.items() if len(own) > 1}


def naive_ranks(folder: Path, dataset: Dataset, split: Any, floor: Any = None) -> list[float]:
    """Rank each target by a loop; the floor replaces the vectors of the items that it names."""
    model, _ = load_recommender(folder)
    samples, ranks = dataset.held_out(split), []
    vectors = model.item_vectors().detach().clone()
    if floor is not None:
        others = [item for item in range(1, len(vectors)) if item not in floor]
        vectors[floor] = vectors[others].mean(dim=0)
    for start, end in zip(*samples.spans(np.arange(len(samples)))[:2], strict=True):
        history, target = samples.flat[start:end].tolist(), int(samples.flat[end])
        user = model.encode(pad_histories([history], model.max_history_items)).users[0].detach()
        scores = vectors @ user
        others = [item for item in range(1, len(scores)) if item not in history and item != target]
        ranks.append(sum(float(scores[item]) > float(scores[target]) + 1e-6 for item in others))
    return ranks


def test_ranks_are_those_of_a_loop(finished: Path, tmp_path: Path) -> None:
    items = withheld_items(finished / "cold" / "run" / "prepare")
    write_target_users(finished / "prepare", tmp_path, "valid", items)
    users = Dataset.load(tmp_path)
    table = pq.read_table(finished / "cold" / "valid" / "per_user.parquet").to_pandas()
    folder = finished / "cold" / "run" / "pretrain" / "sasrec"
    for rows, floor in (("withheld", None), ("floor", items)):
        own = table[(table["model"] == "sasrec") & (table["items"] == rows)]
        for found, expected in zip(own["rank"], naive_ranks(folder, users, "valid", floor), strict=True):
            assert expected <= found < expected + len(items)  # all withheld items have one vector, the mean
    assert set(table["model"]) == {"sasrec", "teacher", "student"}
    kept = table[(table["model"] == "student") & (table["items"] == "trained")]
    assert main(["evaluate", "--config", str(finished / "distill" / "config.yaml"), "--output", str(finished)]) == 0
    everyone = pq.read_table(finished / "evaluate" / "per_user_valid.parquet").to_pandas()
    everyone = everyone[everyone["model"] == "student"].set_index("user_id")["rank"]
    values = user_values(finished / "cold" / "valid", "hit@10")["student"]["trained"]
    # ties are ordered by draws that depend on the number of users, and trained scores have no ties
    assert kept["rank"].tolist() == everyone.loc[kept["user_id"]].tolist()
    assert values.tolist() == [float(rank < 10) for rank in kept["rank"]]


def test_the_numbers_are_those_of_the_ranks(finished: Path) -> None:
    content = read_json(finished / "cold" / "cold.json")
    values = user_values(finished / "cold" / "valid")
    assert (content["split"], content["protocol"], content["num_withheld_items"]) == (
        "valid",
        "full_history_excluded",
        8,
    )
    assert list(content["models"]) == ["sasrec", "teacher", "student"]
    for name, model in content["models"].items():
        own = values[name]
        assert model["means"]["withheld"]["ndcg@10"] == own["withheld"].mean()
        assert model["share_kept"]["value"] == compare_ratio(own["trained"], own["withheld"]).value
        assert model["to_floor"]["low"] == compare_means(own["floor"], own["withheld"]).low
        assert model["origin"] == "the mean of all rows, since no text is known"
    assert content["sentences"][0].startswith("8 of 40 items left training and histories; the held-out item of ")
    text = (finished / "cold" / "cold.md").read_text(encoding="utf-8")
    assert all(f"- {sentence}" in text for sentence in content["sentences"])


def test_finished_steps_are_skipped(finished: Path, recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    before = (finished / "cold" / "cold.json").read_bytes()
    assert main(["cold", "--config", str(recipe), "--output", str(finished), "cold.share=0.2"]) == 0
    assert ": done in" not in caplog.text and (finished / "cold" / "cold.json").read_bytes() == before
    caplog.clear()
    assert main(["cold", "--config", str(recipe), "--output", str(finished), "--share=0.2", "--split=test"]) == 0
    assert caplog.text.count(": done in") == 1  # the models are the same, only the ranks are others
    assert read_json(finished / "cold" / "cold.json")["split"] == "test"
    caplog.clear()
    command = ["cold", "--config", str(recipe), "--output", str(finished), "--share=0.2", "prepare.input=null"]
    assert main(command) == 0 and ": done in" not in caplog.text  # the data set of the run is used as it is
    assert (finished / "cold" / "cold.json").read_bytes() == before


def test_mistakes_are_one_line(
    finished: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cold", "--config", str(recipe), "--output", str(finished)]
    assert "cold.share is 0.99, which is 40 of 40 items, but 40 items have 5 or more training events" in refused(
        [*command, "--share", "0.99"], capsys
    )
    assert "cold.share is 0.01, which is 0 of 40 items" in refused([*command, "cold.share=0.01"], capsys)
    assert "cold.share is 1: Input should be less than 1" in refused([*command, "--share", "1"], capsys)
    assert "cold.share is 'some'" in refused([*command, "--share", "some"], capsys)
    error = refused([*command, f"distill.teacher={finished / 'finetune'}"], capsys)
    assert "was trained with the items that are to be withheld; leave distill.teacher out" in error


def test_rows_come_from_items_of_similar_text() -> None:
    model, text = sasrec(), torch.zeros(41, 2)
    text[1:, 0], text[1:, 1] = 1.0, torch.arange(40.0)
    text[7] = 0  # an item without text
    before = model.item_embeddings.weight.detach().clone()
    replace_rows(model, ITEMS, text)
    after = model.item_embeddings.weight.detach()
    others = [item for item in range(1, 41) if item not in ITEMS]
    assert (after[others] == before[others]).all() and (after[0] == before[0]).all()
    direction = before[[4, 5, 6]].mean(dim=0)
    assert torch.nn.functional.cosine_similarity(after[3], direction, dim=0).item() == pytest.approx(1, abs=1e-6)
    assert after[3].norm().item() == pytest.approx(before[[4, 5, 6]].norm(dim=1).mean().item(), rel=1e-6)
    assert torch.allclose(after[7], before[others].mean(dim=0), atol=1e-6)
    replace_rows(model, ITEMS, text)
    assert torch.equal(model.item_embeddings.weight.detach(), after)  # replaced rows do not count themselves


@pytest.mark.parametrize("make", [lambda: decoder(prompt=False, titles=True), ensemble], ids=["decoder", "ensemble"])
def test_text_vectors_stay(make: Any) -> None:
    model = make()
    before, is_text = item_rows(model).clone(), text_columns(model)
    replace_rows(model, ITEMS, None)
    after = item_rows(model)
    assert is_text.any() and torch.equal(after[:, is_text], before[:, is_text])
    learned = before[:, ~is_text]
    assert torch.allclose(after[ITEMS][:, ~is_text], mean_of_others(learned, ITEMS).expand(3, -1), atol=1e-6)


def test_json_has_no_infinite_numbers(finished: Path) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    json.loads((finished / "cold" / "cold.json").read_text(encoding="utf-8"), parse_constant=refuse)
