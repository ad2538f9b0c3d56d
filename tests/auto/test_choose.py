"""Settings chosen from the facts of the data: recipe, sizes, protocol, each with its reason."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest
from toys_facts import TOYS

from slmrec import prepare
from slmrec.auto.choose import check_overrides, choose
from slmrec.auto.facts import facts_of
from slmrec.auto.rules import draft
from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError

WITHOUT_TITLES = {"title_share": 0.0, "distinct_share": 0.0, "shared_words": 0.0}


def chosen(**changes: float) -> Config:
    return draft(dataclasses.replace(TOYS, **changes), []).config


def test_a_log_like_toys_gets_the_recipe_words() -> None:
    recipe = load_config("words", [])
    config = chosen()
    assert (config.pretrain, config.finetune, config.distill) == (recipe.pretrain, recipe.finetune, recipe.distill)


@pytest.mark.parametrize(
    "useless",
    [WITHOUT_TITLES, {"title_share": 0.3}, {"distinct_share": 0.1}, {"shared_words": 0.4}],
    ids=["none", "few", "alike", "names"],
)
@pytest.mark.parametrize("num_samples", [109_000, 15_000, 500])
def test_titles_that_do_not_help_are_not_read(useless: dict[str, float], num_samples: int) -> None:
    config = chosen(num_samples=num_samples, **useless)
    assert list(config.pretrain) == ["sasrec", "cosine"] and not config.item_text


def test_a_small_log_gets_small_batches_and_enough_steps() -> None:
    demo = load_config("demo", [])
    config = chosen(num_users=2000, num_samples=15_000)
    assert list(config.pretrain) == ["sasrec", "text"]
    epochs = {name: model.train.num_train_epochs for name, model in config.pretrain.items()}
    assert epochs == {name: model.train.num_train_epochs for name, model in demo.pretrain.items()}
    assert config.distill.train == demo.distill.train and config.item_text["words"].num_components is None
    smaller = chosen(num_users=300, num_samples=2000)
    assert smaller.pretrain["sasrec"].train.num_train_epochs == 60


def test_too_few_samples_train_nothing() -> None:
    config = chosen(num_samples=99)
    assert not config.pretrain and not config.trains_student


def test_a_large_catalogue_is_sampled() -> None:
    config = chosen(num_items=1_000_000)
    assert list(config.pretrain) == ["sasrec"] and not config.trains_student
    assert config.pretrain["sasrec"].train.loss == "sampled_softmax"


@pytest.mark.parametrize("num_samples", [109_000, 15_000])
@pytest.mark.parametrize("titles", [{}, WITHOUT_TITLES])
def test_long_histories_and_repeats(num_samples: int, titles: dict[str, float]) -> None:
    config = chosen(num_samples=num_samples, typical_length=120, repeat_share=0.4, **titles)
    windows = {model.max_history_items for model in (*config.pretrain.values(), config.finetune)}
    assert windows == {200} and config.evaluate.primary_protocol == "full"
    assert {model.repeat_score for model in config.pretrain.values()} == {"by_age"}


def test_every_choice_has_a_reason_and_the_user_has_the_last_word() -> None:
    overrides = ["evaluate.primary_protocol=full", "evaluate.protocols=[full]", "seed=3"]
    made = draft(dataclasses.replace(TOYS, repeat_share=0.0), check_overrides(overrides))
    assert made.config.evaluate.protocols == ("full",) and made.config.seed == 3
    assert made.chosen and all(choice.setting and choice.reason for choice in made.chosen)


@pytest.mark.parametrize(
    ("override", "expected"),
    [("pretrain.sasrec.hidden_size=8", "is chosen; give --config"), ("prepare.user_cool=x", "did you mean 'user_col'")],
)
def test_settings_that_are_chosen_or_unknown_are_refused(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_overrides([override])


def test_facts_of_a_log(tmp_path: Path) -> None:
    items = pa.table({"item_id": ["a", "b", "c", "d"], "title": ["Red Car", "Red Bus", "Blue Car", None]})
    events = pa.table(
        {
            "user_id": ["u"] * 5 + ["v"] * 5,
            "item_id": ["a", "b", "c", "d", "a", "a", "b", "c", "d", "b"],
            "timestamp": list(range(10)),
        }
    )
    folder = prepare(events, tmp_path / "log", items)
    found = facts_of(Dataset.load(folder))
    assert (found.num_users, found.num_items, found.num_events, found.num_samples) == (2, 4, 10, 4)
    assert (found.repeat_share, found.title_share, found.distinct_share, found.typical_length) == (0.2, 0.75, 1.0, 5)
    assert found.shared_words == pytest.approx(4 / 3) and found.has_words
    assert not choose(folder).config.pretrain
