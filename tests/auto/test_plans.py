"""The largest plan that fits into the time and the memory, from fake measurements; and a real run in a short time."""

import dataclasses
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from runs import read_json
from toys_facts import TOYS

from slmrec.auto.amounts import bytes_of, seconds_of
from slmrec.auto.measure import STUDENT, Costs, Measurement, ModelCost
from slmrec.auto.memory import fitted_to_memory
from slmrec.auto.plans import OVERHEAD, RESERVE_S, planned
from slmrec.auto.rules import Draft, draft
from slmrec.commands.main import main
from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.data.simulate import write_shop
from slmrec.errors import ConfigError

TOYS_COSTS = {"text": 25.0, "text_2": 25.0, "cosine": 15.0, STUDENT: 30.0}


def fake(config: Config) -> Costs:
    """Return times like those of one core on Toys and Games."""
    names = [*config.pretrain, *([STUDENT] if config.trains_student else [])]
    fast = "sasrec" in config.pretrain and config.pretrain["sasrec"].supervision == "every_position"
    costs = TOYS_COSTS | {"sasrec": 15.0 if fast else 45.0}
    assert all(model.item_text in config.item_text for model in config.pretrain.values() if "text" in model.kind)
    models = {name: ModelCost(costs[name], 0.0003, {1: 4 * 2**30, 2: 2**30}) for name in names}
    return Costs(models, 30.0, 20.0) if config.trains_student else Costs(models)


def minutes(config: Config) -> float:
    trains = [model.train for model in config.pretrain.values()]
    trains += [config.distill.train] if config.trains_student else []
    return sum(train.max_minutes or 0 for train in trains)


def test_without_a_budget_the_recipe_stays_and_its_time_is_shown() -> None:
    made = planned(draft(TOYS, []), TOYS, fake, None)
    assert made.config == draft(TOYS, []).config and not made.is_cut
    assert made.chosen[-1].setting == "time" and made.chosen[-1].value.startswith("about ")


@pytest.mark.parametrize(
    ("budget", "models", "with_student"),
    [
        (9000, ["sasrec", "text", "text_2"], True),
        (5400, ["sasrec", "text", "text_2"], True),
        (3600, ["sasrec", "text"], True),
        (1900, ["sasrec", "text"], True),
        (700, ["text"], False),
        (500, ["sasrec"], False),
        (200, ["sasrec"], False),
        (60, [], False),
    ],
)
def test_the_largest_plan_that_fits(budget: float, models: list[str], with_student: bool) -> None:
    made = planned(draft(TOYS, []), TOYS, fake, budget)
    config = made.config
    assert made.is_cut == (budget < 9000)
    assert list(config.pretrain) == models and config.trains_student == with_student
    assert not config.trains_student or list(config.finetune.ensemble) == models
    if models:
        assert 0 < minutes(config) <= budget / 60


def test_less_time_never_gives_more() -> None:
    sizes = []
    for budget in range(30, 9000, 150):
        config = planned(draft(TOYS, []), TOYS, fake, budget).config
        assert minutes(config) * 60 + RESERVE_S * bool(config.pretrain) <= budget
        sizes.append(len(config.pretrain) + config.trains_student)
        for name, model in config.pretrain.items():
            assert (model.train.max_minutes or 0) * 60 >= 6 * OVERHEAD * fake(config).models[name].epoch
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_a_short_budget_keeps_the_titles_and_says_why() -> None:
    reasons = {}
    for budget in range(220, 2400, 100):
        made = planned(draft(TOYS, []), TOYS, lambda config: slowed(fake(config), {STUDENT: 300.0}), budget)
        shown = {choice.setting: choice for choice in made.chosen}["models"]
        settings = {choice.setting.split(".")[1] for choice in made.chosen if choice.setting.startswith("pretrain.")}
        assert settings <= set(made.config.pretrain)
        learners = ["teacher", "student"] if made.config.trains_student else []
        names = [*made.config.pretrain, *learners]
        reasons[tuple(names)] = shown.reason
        assert shown.value == ", ".join(["popularity", "cooccurrence", *names])
    assert list(reasons) == [("sasrec",), ("text",), ("sasrec", "text"), ("sasrec", "text", "teacher", "student")]
    assert len(set(reasons.values())) == 4 and "trained nearly to the end" in reasons["text",]
    without = dataclasses.replace(TOYS, title_share=0.0)
    slow = {"cosine": 500.0, STUDENT: 500.0}
    for budget in (200, 600, 1500):
        config = planned(draft(without, []), without, lambda config: slowed(fake(config), slow), budget).config
        assert list(config.pretrain) == ["sasrec"] and not config.item_text


def slowed(costs: Costs, epochs: dict[str, float]) -> Costs:
    models = {name: cost._replace(epoch=epochs.get(name, cost.epoch)) for name, cost in costs.models.items()}
    return dataclasses.replace(costs, models=models)


def test_the_student_is_shortened_first() -> None:
    whole = planned(draft(TOYS, []), TOYS, fake, 100_000).config
    shorter = [planned(draft(TOYS, []), TOYS, fake, budget).config for budget in range(9000, 3000, -100)]
    part = whole.distill.train.max_minutes / whole.pretrain["sasrec"].train.max_minutes  # type: ignore[operator]
    parts = [
        config.distill.train.max_minutes / config.pretrain["sasrec"].train.max_minutes  # type: ignore[operator]
        for config in shorter
        if "text_2" in config.pretrain
    ]
    assert min(parts) == pytest.approx(part / 2, rel=0.05) and max(parts) == pytest.approx(part, rel=0.05)


def test_small_batches_where_memory_is_short() -> None:
    made = draft(TOYS, [])
    assert fitted_to_memory(made, fake(made.config), 8 * 2**30) == made
    config = fitted_to_memory(made, fake(made.config), 2 * 2**30).config
    train = config.pretrain["sasrec"].train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (128, 2)
    with pytest.raises(ConfigError, match=r"0\.5 GiB of memory are too little for pretrain\.sasrec"):
        fitted_to_memory(made, fake(made.config), 2**29)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("1h 30m", 5400), ("0.5h", 1800), ("2H", 7200), (90, 90), (np.float32(0.5), 0.5)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "20", "0m", "-5m", "1m1h", "m", "20 minutes", "nan", "1e3s", "٢m", 0, -1, np.inf, True]
)
def test_no_durations(text: str | float) -> None:
    with pytest.raises(ConfigError, match="expected a duration such as"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "size"), [("8g", 8 * 2**30), ("8 GB", 8 * 2**30), ("800MiB", 800 * 2**20), (1000, 1000)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder, seed=0, num_users=150)
    return folder


def test_a_run_within_its_time(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmrec.auto.measure.MEASURED_S", 0.05)
    start, output = perf_counter(), tmp_path / "run"
    arguments = ["--input", str(shop / "interactions.csv"), "--output", str(output), "--time-budget", "30s"]
    assert main(["run", *arguments]) == 0
    assert perf_counter() - start < 36
    config = load_config(output / "config.yaml", [])
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full_history_excluded"]["models"]
    names = ["popularity", "cooccurrence", *config.pretrain, *(["teacher", "student"] if config.trains_student else [])]
    assert list(models) == names and config.pretrain
    limit, measured = config.pretrain["sasrec"].train.max_minutes, read_json(output / "pretrain/sasrec/metrics.json")
    assert limit and measured["training_s"] < 60 * limit * 1.5


def test_a_run_with_time_for_the_text_model_alone(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_but_for_text(config: Config) -> Costs:
        names = [*config.pretrain, *([STUDENT] if config.trains_student else [])]
        return Costs({name: ModelCost(0.01 if name == "text" else 100.0, 1e-5, {1: 2**20}) for name in names})

    monkeypatch.setattr("slmrec.auto.choose.Measurement", lambda _: slow_but_for_text)
    files = ["--input", str(shop / "interactions.csv"), "--items", str(shop / "items.csv")]
    assert main(["run", *files, "--output", str(tmp_path / "run"), "--time-budget", "30m"]) == 0
    metrics = read_json(tmp_path / "run" / "evaluate" / "metrics.json")["protocols"]["full_history_excluded"]["models"]
    verdict = read_json(tmp_path / "run" / "verdict.json")
    assert list(metrics) == ["popularity", "cooccurrence", "text"]
    assert verdict["ship"] == "text" and verdict["against"] in ("popularity", "cooccurrence")
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_model_is_measured_once(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmrec.auto.measure.MEASURED_S", 0.01)
    main(["prepare", "--input", str(shop / "interactions.csv"), "--output", str(tmp_path / "data")])
    made: Draft = draft(TOYS, [])
    alone = made.without_student("test", {"sasrec": {"supervision": "every_position", "positions": "from_oldest"}})
    measure = Measurement(tmp_path / "data")
    first = measure(alone.config)
    monkeypatch.setattr("slmrec.auto.measure.untrained", lambda *_: pytest.fail("measured again"))
    assert measure(alone.config) == first and first.models["sasrec"].epoch > 0
    assert first.models["sasrec"].memory[1] > 0
