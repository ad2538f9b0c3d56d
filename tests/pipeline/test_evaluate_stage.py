"""`slmrec evaluate`: metrics, ranks of each user, and the results in the cards of the models."""

from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from runs import read_json
from safetensors.numpy import load_file

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.pipeline.evaluation_tables import constant_note
from slmrec.report.quality import _all_metrics

OF_LISTS = {"coverage@10", "novelty@10", "gini@10", "ild@10", "popularity_lift@10"}


def test_metrics_can_be_recomputed_from_the_ranks(finished: Path) -> None:
    content = read_json(finished / "evaluate" / "metrics.json")
    assert content["primary"] == "full_history_excluded"
    assert list(content["protocols"]) == ["full_history_excluded", "full", "sampled_19"]
    ranks = pq.read_table(finished / "evaluate" / "per_user.parquet")
    assert ranks.column_names == ["user_id", "model", "protocol", "rank"]
    rows = ranks.to_pandas()
    for protocol, values in content["protocols"].items():
        assert {"split", "eval_mode", "exclude_history", "num_negatives", "seed"} <= set(values["settings"])
        assert list(values["models"]) == ["popularity", "cooccurrence", "sasrec", "teacher", "student"]
        for model, metrics in values["models"].items():
            own = rows[(rows["protocol"] == protocol) & (rows["model"] == model)]
            assert len(own) == 80
            for name, value in ranking_metrics(own["rank"].to_numpy()).items():
                assert metrics[name] == pytest.approx(value)
            assert metrics["users_per_second"] > 0
            of_lists = OF_LISTS & metrics.keys()
            assert len(of_lists) == (0 if protocol == "sampled_19" else 5)
    assert load_file(finished / "evaluate" / "negatives.safetensors")["negatives"].shape == (80, 19)


def test_model_folders_hold_the_results_of_the_evaluation(finished: Path, tmp_path: Path) -> None:
    content = read_json(finished / "evaluate" / "metrics.json")
    folders = {name: f"pretrain/{name}" for name in ("popularity", "cooccurrence", "sasrec")}
    for name, step in {**folders, "teacher": "finetune", "student": "distill"}.items():
        about = Recommender.from_pretrained(finished / step).about  # this verifies the checksums
        assert [measured.protocol for measured in about.measured] == list(content["protocols"])
        for measured in about.measured:
            protocol = content["protocols"][measured.protocol]
            assert measured.settings == protocol["settings"]
            assert measured.metrics.items() <= protocol["models"][name].items() and "ndcg@10" in measured.metrics
            assert (measured.num_users, measured.num_items) == (80, 40)
        assert "| ndcg@10 |" in (finished / step / "README.md").read_text(encoding="utf-8")
    Recommender.from_pretrained(finished / "distill").save_pretrained(tmp_path)
    for name in ("README.md", "about.json"):
        assert (tmp_path / name).read_bytes() == (finished / "distill" / name).read_bytes()


def test_some_models_on_both_splits(output: Path, common: list[str]) -> None:
    chosen = ["evaluate.models=[student, popularity]", "evaluate.splits=[test, valid]"]
    assert main(["evaluate", *common, *chosen]) == 0
    for name in ("metrics.json", "metrics_valid.json"):
        models = read_json(output / "evaluate" / name)["protocols"]["full"]["models"]
        assert list(models) == ["popularity", "student"]


def test_validation_items_are_ranked_under_the_primary_protocol_whichever_splits_are_evaluated(
    finished: Path, output: Path, common: list[str]
) -> None:
    ranks = pq.read_table(finished / "evaluate" / "validation_ranks.parquet").to_pandas()
    assert set(ranks["protocol"]) == {"full_history_excluded"} and len(ranks) == 5 * 80
    assert not (finished / "evaluate" / "per_user_valid.parquet").exists()
    assert main(["evaluate", *common, "evaluate.splits=[valid]", "evaluate.primary_protocol=full"]) == 0
    by_split = pq.read_table(output / "evaluate" / "per_user_valid.parquet").to_pandas()
    excluded = by_split[by_split["protocol"] == "full_history_excluded"].reset_index(drop=True)
    assert excluded.equals(ranks)
    own = pq.read_table(output / "evaluate" / "validation_ranks.parquet").to_pandas()
    assert own.equals(by_split[by_split["protocol"] == "full"].reset_index(drop=True)) and not own.equals(ranks)


def test_a_log_without_validation_items_is_evaluated_all_the_same(tmp_path: Path) -> None:
    rows = [f"u{user},{(user + day) % 12},{day}" for user in range(12) for day in (1, 2, 3, 9)]
    rows += [f"new{user},{day},{day}" for user in range(3) for day in (5, 6, 7)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8")
    settings = {"prepare": {"split": "temporal", "valid_share": 0.15, "test_share": 0.2}, "pretrain": {}}
    settings |= {"distill": {"teacher": None}, "evaluate": {"protocols": ["full_history_excluded"]}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    log, output = str(tmp_path / "log.csv"), str(tmp_path / "run")
    assert main(["run", "--input", log, "--config", str(recipe), "--output", output]) == 0
    assert (tmp_path / "run" / "evaluate" / "metrics.json").is_file()
    assert not (tmp_path / "run" / "evaluate" / "validation_ranks.parquet").exists()


def test_metrics_that_are_1_for_every_model_are_named(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    log.write_text("".join(f"u{user} {' '.join(str((user + step) % 9) for step in range(6))}\n" for user in range(9)))
    common = ["--config", str(config), "--output", str(tmp_path / "run"), f"prepare.input={log}"]
    sampled = "evaluate.protocols=[full_history_excluded,full,sampled_19]"
    assert main(["run", *common, sampled]) == 2
    error = capsys.readouterr().err
    assert "evaluate.num_negatives is 19 (evaluate.protocols has sampled_19), but the data set has 9 items" in error
    assert "2 x num_negatives + 2; name a protocol of fewer, such as sampled_3, or leave it out" in error
    assert not (tmp_path / "run" / "pretrain").exists()
    assert main(["run", *common, "evaluate.protocols=[full_history_excluded,full]"]) == 0
    assert "prepare: there are 9 items, so hit@k is 1 for every model from k = 9" in caplog.text
    protocols = read_json(tmp_path / "run" / "evaluate" / "metrics.json")["protocols"]
    assert [protocol["constant_metrics"] for protocol in protocols.values()] == [
        ["hit@5", "hit@10", "hit@20", "coverage@10"],
        ["hit@10", "hit@20", "coverage@10"],
    ]
    for name, protocol in protocols.items():
        for metric, model in product(protocol["constant_metrics"], protocol["models"].values()):
            assert model[metric] == 1
        note = constant_note(name, protocol)
        assert f"evaluate: {note}" in caplog.text and _all_metrics(name, protocol).note.endswith(f". {note}.")
    assert "coverage@10 can only be 1" in " ".join(capsys.readouterr().out.split())
