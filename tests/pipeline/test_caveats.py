"""Warnings about a log, and what could make a model better; each on a log made for it, and silent on the plain one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slmrec.config import Config
from slmrec.data.dataset import Dataset
from slmrec.data.event_times import EventTimes
from slmrec.pipeline.caveats import improvements, warnings_about

Event = tuple[str, int, int]
DAY = 86_400
PLAIN = [(f"u{user}", (5 * user + step) % 50, DAY * step) for user in range(40) for step in range(6)]
"""Users who begin on the same day and take other items each day, so that the last events of all are the newest."""


def dataset(
    events: Sequence[Event], titles: list[str | None] | None = None, periods: tuple[int, int] | None = None
) -> Dataset:
    """A data set in memory; `periods` are the times from which events are held out for validation and test."""
    users, items = sorted({user for user, _, _ in events}), sorted({item for _, item, _ in events})
    rows = sorted((users.index(user), time, items.index(item) + 1) for user, item, time in events)
    owners, times, flat = np.array(rows).T
    offsets = np.searchsorted(owners, np.arange(len(users) + 1))
    cuts = None
    if periods is not None:
        before = [[(times[owners == user] < period).sum() for period in periods] for user in range(len(users))]
        cuts = np.array(before, np.int32)
    columns = {"item_id": items} if titles is None else {"item_id": items, "title": titles}
    ids = pa.table({"user_id": users}), pa.table(columns)
    return Dataset(flat, offsets, *ids, "invented", cuts, times=EventTimes("s", times))


def warnings(data: Dataset, protocol: str = "full_history_excluded") -> list[str]:
    samples = data.held_out("valid")
    values = np.where(np.arange(len(samples)) % 4 == 0, 1.0, 0.0)
    return list(warnings_about(data, samples, values, "student", protocol))


def test_a_plain_log_has_no_warnings() -> None:
    assert warnings(dataset(PLAIN)) == []
    few = [(user, item, time) for user, item, time in PLAIN if user in ("u0", "u1")]  # half of it each, as all equals
    assert warnings(dataset(few)) == []


@pytest.mark.parametrize(("num_repeating", "expected"), [(3, 0), (4, 1)])
def test_items_that_users_saw_before(num_repeating: int, expected: int) -> None:
    repeating = {f"u{user}" for user in range(num_repeating)}  # the item of day 4 is that of day 0
    events = [(user, item - 4 if user in repeating and time == 4 * DAY else item, time) for user, item, time in PLAIN]
    data = dataset(events)
    found = {protocol: warnings(data, protocol) for protocol in ("full_history_excluded", "full", "sampled_20")}
    assert [len(texts) for texts in found.values()] == [expected] * 3
    if expected:
        assert found["full"] == [
            "10% of the validation items were seen by their user before, and full recommends them again: the NDCG@10 "
            "of student is 0.5000 on these and 0.2222 where it is new."
        ]
        for protocol in ("full_history_excluded", "sampled_20"):
            assert (
                f"10% of the validation items were seen by their user before, but {protocol} leaves"
                in found[protocol][0]
            )
            assert "set evaluate.primary_protocol=full" in found[protocol][0]


def fashion() -> list[Event]:
    """Users one after another, the late ones of whom take what the early ones take last: items in fashion."""
    late = range(90, 102)
    events = []
    for user in range(40):
        first = [(5 * user + step) % 50 if user < 20 else late[(user + step) % 12] for step in range(4)]
        items = [*first, late[(user + 4) % 12], 110 + user]
        events += [(f"u{user}", item, DAY * (7 * user + step)) for step, item in enumerate(items)]
    return events


def test_training_events_later_than_what_is_predicted() -> None:
    """Only where they help to predict: the early users take what becomes popular later."""
    data = dataset(fashion())
    (warning,) = warnings(data)
    assert warning.startswith("Models learn from the future, and that flatters them: on average 49% of the training")
    assert (
        "prepare.split=temporal" in warning and "From the events before it, popularity has an NDCG@10 of 0." in warning
    )
    assert len(warnings(data, "full")) == 1
    assert warnings(replace(data, times=None)) == []
    assert warnings(dataset(fashion(), periods=(73 * DAY, 250 * DAY))) == []


def test_later_events_that_tell_nothing_more_give_no_warning() -> None:
    """Each user begins when the one before has ended, so half of the events are later, but tastes stay the same."""
    assert warnings(dataset([(user, item, time + 7 * DAY * int(user[1:])) for user, item, time in PLAIN])) == []


@pytest.mark.parametrize(("num_more", "expected"), [(18, 0), (30, 1)])
def test_a_user_with_much_of_the_log(num_more: int, expected: int) -> None:
    robot = [("u0", 100 + number, number) for number in range(num_more)]  # before the others begin
    found = warnings(dataset([*robot, *((user, item, 100 + time) for user, item, time in PLAIN)]))
    assert len(found) == expected
    if expected:
        assert found[0].startswith("One user has 13% of all events (36): a robot,")


@pytest.mark.parametrize(("num_users", "expected"), [(15, 0), (24, 1)])
def test_an_item_with_much_of_the_log(num_users: int, expected: int) -> None:
    postage = {f"u{user}" for user in range(num_users)}
    events = [(user, 77 if user in postage and time == 0 else item, time) for user, item, time in PLAIN]
    found = warnings(dataset(events))
    assert len(found) == expected
    if expected:
        assert found[0].startswith("Item 77 has 15% of the training events (24): nearly every list")


ALONE: dict[str, Any] = {"finetune": {}, "distill": {"teacher": None}}
WORDS = {"item_text": {"words": {"source": "words"}}, "pretrain": {"text": {"kind": "text"}}}


def could_help(data: Dataset, folder: Path, ship: str = "sasrec", **settings: Any) -> list[str]:
    return list(improvements(Config(**ALONE | settings), folder, data, data.held_out("valid"), ship))


def test_titles_could_help(tmp_path: Path) -> None:
    data = dataset(PLAIN)
    (text,) = could_help(data, tmp_path)
    assert text == "Text could make it better: the items have no titles; give them with --items FILE."
    for named, expected in (
        (20, "most items have no title"),
        (30, "no model of this run reads"),
    ):
        titles = [f"Thing {item}" if item < named else None for item in range(50)]
        titled = dataset(PLAIN, titles)
        (text,) = could_help(titled, tmp_path)
        assert expected in text
    assert could_help(titled, tmp_path, **WORDS) == []


@pytest.mark.parametrize(("window", "num_found"), [(3, 1), (4, 0)])
def test_longer_histories_could_help(tmp_path: Path, window: int, num_found: int) -> None:
    data = dataset(PLAIN)  # 4 events before that of validation
    settings = {"pretrain": {"sasrec": {"max_history_items": window}}}
    found = could_help(data, tmp_path, **settings)[1:]
    assert len(found) == num_found
    if found:
        assert "it reads the 3 newest items, and 100% of the users have more; raise max_history_items" in found[0]
    assert could_help(data, tmp_path, ship="cooccurrence", **settings)[1:] == []
    whole = {"finetune": {"max_history_items": window}, "distill": {}}
    assert len(could_help(data, tmp_path, ship="student", **whole)[1:]) == num_found


def test_more_time_could_help(tmp_path: Path) -> None:
    data, folder = dataset(PLAIN), tmp_path / "pretrain" / "sasrec"
    (tmp_path / "choice.json").write_text(json.dumps({"is_cut": False}))
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"reached_max_minutes": 0}))
    assert could_help(data, tmp_path)[1:] == []
    (tmp_path / "choice.json").write_text(json.dumps({"is_cut": True}))
    assert "--time-budget allowed fewer models or epochs" in could_help(data, tmp_path)[1]
    (folder / "metrics.json").write_text(json.dumps({"reached_max_minutes": 1}))
    assert could_help(data, tmp_path)[1:] == [
        "More time could make it better: max_minutes stopped the training of pretrain/sasrec."
    ]


def test_a_log_on_which_nothing_was_trained_needs_more_events(tmp_path: Path) -> None:
    data = dataset(PLAIN)
    (text,) = could_help(data, tmp_path, ship="cooccurrence", pretrain={})
    assert text == "More events could make it better: no model was trained that learns from longer histories."
    (tmp_path / "choice.json").write_text(json.dumps({"is_cut": True}))
    (text,) = could_help(data, tmp_path, ship="cooccurrence", pretrain={})
    assert text.startswith("More time could make it better")
