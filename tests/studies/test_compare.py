"""`slmrec compare`: numbers against a naive computation, users joined by id, and every fault in one line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec.commands.main import main
from slmrec.evaluation.metrics import user_metrics
from slmrec.evaluation.statistics import compare_means, holm

NUM_USERS = 60
SETTINGS = {"exclude_history": True, "num_negatives": None, "seed": 42}


def write_run(
    folder: Path,
    ranks: dict[str, Sequence[int]],
    users: Sequence[Any] = tuple(f"u{user}" for user in range(NUM_USERS)),
    counts: Sequence[int] | None = None,
    split: str = "valid",
    **settings: Any,
) -> Path:
    """Write a folder like that of an evaluated run; histories have 2 to 21 items, and targets 0 to 59 events."""
    evaluate = folder / "evaluate"
    evaluate.mkdir(parents=True, exist_ok=True)
    suffix = "" if split == "test" else f"_{split}"
    protocols = {
        name: {"settings": SETTINGS | settings, "models": {key: {} for key in ranks}} for name in ("primary", "full")
    }
    content = {"primary": "primary", "protocols": protocols}
    (evaluate / "stage.json").write_text(json.dumps({"done": True}), encoding="utf-8")
    (evaluate / f"metrics{suffix}.json").write_text(json.dumps(content), encoding="utf-8")
    tables = [
        pa.table({"user_id": users, "model": [model] * len(own), "protocol": [protocol] * len(own), "rank": own})
        for model, own in ranks.items()
        for protocol in protocols
    ]
    pq.write_table(pa.concat_tables(tables), evaluate / f"per_user{suffix}.parquet")
    numbers = np.arange(len(users))
    told = {"history_length": 2 + numbers % 20, "target_count": numbers if counts is None else counts}
    pq.write_table(pa.table({"user_id": users, **told}), evaluate / f"users{suffix}.parquet")
    return folder


@pytest.fixture
def ranks() -> tuple[list[int], list[int]]:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 30, NUM_USERS)
    return first.tolist(), np.maximum(0, first - generator.integers(-2, 6, NUM_USERS)).tolist()


@pytest.fixture
def runs(tmp_path: Path, ranks: tuple[list[int], list[int]]) -> tuple[Path, Path]:
    """Two runs; the second has the users in another order."""
    ours, theirs = ranks
    first = write_run(tmp_path / "a", {"student": ours, "teacher": theirs})
    back = list(range(NUM_USERS))[::-1]
    second = write_run(tmp_path / "b", {"student": theirs[::-1]}, [f"u{user}" for user in back], back)
    lengths = pq.read_table(second / "evaluate" / "users_valid.parquet").set_column(
        1, "history_length", pa.array([2 + user % 20 for user in back])
    )
    pq.write_table(lengths, second / "evaluate" / "users_valid.parquet")
    return first, second


def compared(arguments: list[Any], tmp_path: Path) -> dict[str, Any]:
    output = tmp_path / "found" / "numbers.json"
    assert main(["compare", *map(str, arguments), "--output", str(output)]) == 0
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["compare", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_the_numbers_are_those_of_the_users(
    runs: tuple[Path, Path], ranks: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    found = compared([*runs], tmp_path)
    ours, theirs = (user_metrics(np.array(own)) for own in ranks)
    assert (found["protocol"], found["num_users"]) == ("primary", NUM_USERS)
    assert list(found["metrics"]) == ["ndcg@10", "hit@10", "mrr"]
    expected = {name: compare_means(ours[name], theirs[name]) for name in found["metrics"]}
    for name, numbers in found["metrics"].items():
        for key in ("mean_a", "mean_b", "difference", "low", "high", "p_value"):
            assert numbers[key] == getattr(expected[name], key)
        assert numbers["relative"] == numbers["difference"] / numbers["mean_a"]
    corrected = [numbers["p_holm"] for numbers in found["metrics"].values()]
    assert corrected == holm([one.p_value for one in expected.values()])


def test_slices_part_the_users(runs: tuple[Path, Path], ranks: tuple[list[int], list[int]], tmp_path: Path) -> None:
    found = compared([*runs, "--metric", "mrr", "--metric", "hit@5", "--metric", "mrr"], tmp_path)
    assert list(found["metrics"]) == ["mrr", "hit@5"] and found["sliced_metric"] == "mrr"
    sizes = {by: {name: row["num_users"] for name, row in rows.items()} for by, rows in found["slices"].items()}
    assert sizes == {
        "target_count": {"0 (never trained on)": 1, "1-4 (rare)": 4, "5-20": 16, "more than 20": 39},
        "history_length": {"1-5 (short)": 12, "6-20": 45, "21-100": 3},
    }
    ours, theirs = (user_metrics(np.array(own))["mrr"] for own in ranks)
    numbers = np.arange(NUM_USERS)
    short, rare = numbers % 20 < 4, (numbers > 0) & (numbers < 5)
    for by, name, own in (("history_length", "1-5 (short)", short), ("target_count", "1-4 (rare)", rare)):
        row = found["slices"][by][name]
        assert row["difference"] == pytest.approx((theirs - ours)[own].mean())
    p_values, corrected = (
        [row[key] for rows in found["slices"].values() for row in rows.values()] for key in ("p_value", "p_holm")
    )
    assert corrected == holm(p_values)


def test_empty_groups_are_left_out(tmp_path: Path, ranks: tuple[list[int], ...]) -> None:
    counts = [7] * 50 + [99] * 10
    first, second = (
        write_run(tmp_path / name, {"student": own}, counts=counts) for name, own in zip("ab", ranks, strict=True)
    )
    found = compared([first, second], tmp_path)["slices"]["target_count"]
    assert {name: row["num_users"] for name, row in found.items()} == {"5-20": 50, "more than 20": 10}


def test_two_models_of_one_run(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = runs
    within = compared([run, run, "--model-b", "teacher"], tmp_path)
    assert within["metrics"] == compared([run, other], tmp_path)["metrics"]
    back = compared([run, run, "--model", "teacher", "--model-b", "student"], tmp_path)["metrics"]["mrr"]
    assert back["difference"] == pytest.approx(-within["metrics"]["mrr"]["difference"])
    said = capsys.readouterr().out
    assert f"A: student of {run}" in said and f"B: teacher of {run}" in said and "differences are B - A" in said
    assert "60 users, primary; validation split" in said
    assert "NDCG@10 by number of items in the history" in said and "1-4 (rare)" in said


def test_bad_requests_are_one_line(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = runs
    (tmp_path / "empty").mkdir()
    expected = {
        (first, tmp_path / "empty"): f"{tmp_path / 'empty' / 'evaluate'}: no finished evaluate; run `slmrec evaluate`",
        (
            first,
            second,
            "--model-b",
            "sasrec",
        ): f"{second / 'evaluate'}: no model 'sasrec' was evaluated; choose from ",
        (first, second, "--protocol", "sampled_9"): "no protocol 'sampled_9' was evaluated; choose from primary, full",
        (first, second, "--metric", "hit@7"): "--metric hit@7: unknown metric; choose from hit@1, hit@5, hit@10,",
        (first, first): f"{first}: student is compared with itself; give --model-b another model",
        (
            first,
            second,
            "--output",
            "numbers.csv",
        ): "numbers.csv: numbers are written as JSON; give --output NAME",
    }
    for arguments, message in expected.items():
        assert message in refused([*arguments], capsys)


def test_other_users_or_targets_are_refused(
    ranks: tuple[list[int], list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = ranks
    first = write_run(tmp_path / "first", {"student": ours})
    others = {
        "other": write_run(tmp_path / "other", {"student": theirs}, [f"u{user + 20}" for user in range(NUM_USERS)]),
        "fewer": write_run(tmp_path / "fewer", {"student": theirs[:50]}, [f"u{user}" for user in range(50)]),
        "numbers": write_run(tmp_path / "numbers", {"student": theirs}, range(NUM_USERS)),
    }
    for name, number, common in (("other", 60, 40), ("fewer", 50, 50), ("numbers", 60, 0)):
        error = refused([first, others[name]], capsys)
        assert f"{first} has 60 evaluated users and {others[name]} has {number}, of whom {common} are in both" in error
    changed = write_run(tmp_path / "changed", {"student": theirs}, counts=[5, *range(1, NUM_USERS)])
    assert "same users, but 1 of 60 differ in their target_count" in refused([first, changed], capsys)


def test_ranks_against_other_items_are_refused(
    ranks: tuple[list[int], list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        write_run(tmp_path / name, {"student": own}, seed=seed, num_negatives=number)
        for name, own, seed, number in (
            ("a", ranks[0], 1, None), ("b", ranks[1], 2, None), ("c", ranks[0], 1, 99), ("d", ranks[1], 2, 99)
        )
    ]  # fmt: skip
    assert main(["compare", str(runs[0]), str(runs[1])]) == 0  # without negatives the seed draws nothing
    assert "were evaluated with different settings" in refused(runs[2:], capsys)
    assert "'num_negatives': 99" in refused([runs[0], runs[3]], capsys)


def test_a_run_of_an_earlier_version_is_refused(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = runs[1] / "evaluate" / "users_valid.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    assert "its files are of different evaluations; run `slmrec evaluate --force`" in refused([*runs], capsys)
    file.unlink()
    assert "has no ranks of the validation split" in refused([*runs], capsys)
    (runs[1] / "evaluate" / "stage.json").write_text('{"done": true, "version": "0.1.0"}', encoding="utf-8")
    assert "made by version 0.1.0" in refused([*runs], capsys)


def test_the_test_split_is_read_only_on_request(
    ranks: tuple[list[int], list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        write_run(tmp_path / name, {"student": own}, split="test") for name, own in zip("ab", ranks, strict=True)
    )
    error = refused([first, second], capsys)
    config = first / "evaluate" / "config.yaml"
    assert f"{first / 'evaluate'}: has no ranks of the validation split; evaluate it with " in error
    assert f"`slmrec evaluate --config {config} --output {first} evaluate.splits=[test,valid]`" in error
    found = compared([first, second, "--split", "test"], tmp_path)
    assert found["split"] == "test" and "primary; test split" in capsys.readouterr().out
    write_run(tmp_path / "a", {"student": ranks[1]})
    write_run(tmp_path / "b", {"student": ranks[1]})
    assert compared([first, second], tmp_path)["metrics"]["mrr"]["difference"] == 0
