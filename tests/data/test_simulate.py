"""The simulated shop: its rule by hand and by a naive sampler, its titles, its log, and what it is like."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data.simulate import (
    ACTIVITIES,
    MAKERS,
    MAX_EVENTS,
    MIN_EVENTS,
    OPENING,
    THINGS,
    YEAR_S,
    Purchases,
    Shop,
    write_shop,
)
from slmrec.errors import ConfigError
from slmrec.evaluation.metrics import user_metrics

NUM_USERS = 2000
LATER = 100


def tiny_shop(sizes=(3, 2), base=(1.0, 3.0), popularity=(0, 1, 2, 3, 1, 4), stay=0.5, **changes):
    num_items = sum(sizes)
    names = tuple(f"item {number}" for number in range(1, num_items + 1))
    values = {
        "makers": (-1, 0, 0, 1, 0, 1),
        "things": (-1, 0, 1, 2, 0, 3),
        "partners": (0, 3, 1, 2, 5, 4),
        "released": (0,) * (num_items + 1),
    }
    arrays = {name: np.array(numbers) for name, numbers in (values | changes).items()}
    return Shop(
        item_ids=names,
        titles=names,
        sizes=np.array(sizes),
        base=np.array(base),
        popularity=np.array(popularity, dtype=float),
        num_things=4,
        stay=stay,
        loyalty=2.0,
        accessory=3.0,
        partnership=4.0,
        **arrays,
    )


def predict(shop, *histories, time=LATER):
    lengths = np.array([len(history) for history in histories])
    items = np.zeros((len(histories), lengths.max()), dtype=np.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = history
    return shop.predict(items, lengths, np.full(len(histories), time))


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop.generate(seed=0)


@pytest.fixture(scope="module")
def purchases(shop: Shop) -> Purchases:
    return shop.simulate(NUM_USERS, seed=0)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        # nothing bought: activities 1/4 and 3/4, within them by popularity 1:2:3 and 1:4
        ([], [0, 0.25 / 6, 0.25 / 3, 0.25 / 2, 0.75 / 5, 0.75 * 0.8]),
        # urn 2:3 of 5, so 0.5 + 0.5 * 2/5; 2 is of the maker of 1 and goes with it: 2 x 2 x 3, 3 is its partner: 3 x 4
        ([1], [0, 0, 0.7 / 2, 0.7 / 2, 0.3 / 5, 0.3 * 0.8]),
        # urn 2:4 of 6, so 0.5 + 0.5 * 2/3 for activity 1, where only 5 is left; the newest of activity 0 is still 1
        ([1, 4], [0, 0, 1 / 12, 1 / 12, 0, 5 / 6]),
        # only item 1 of activity 0 is left; urn 3:3, so 0.5 + 0.5/2
        ([2, 3], [0, 0.75, 0, 0, 0.25 * 0.2, 0.25 * 0.8]),
        # activity 1 is bought up: everything goes to activity 0
        ([4, 5], [0, 1 / 6, 2 / 6, 3 / 6, 0, 0]),
        ([1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]),
    ],
)
def test_hand_worked_probabilities(history, expected):
    np.testing.assert_allclose(predict(tiny_shop(), history)[0], expected, atol=1e-12)


def test_items_are_not_bought_before_their_release():
    shop = tiny_shop(released=(0, 0, 0, LATER, 0, 0))
    np.testing.assert_allclose(predict(shop, [1], time=LATER - 1)[0], [0, 0, 0.7, 0, 0.06, 0.24], atol=1e-12)
    np.testing.assert_allclose(predict(shop, [1])[0], [0, 0, 0.35, 0.35, 0.06, 0.24], atol=1e-12)


def test_a_batch_gives_what_its_rows_give_alone():
    shop, histories = tiny_shop(), ([1], [4, 1, 2], [], [3, 5])
    alone = [
        shop.predict(np.array([history], dtype=np.int64), np.array([len(history)]), np.array([LATER]))
        for history in histories
    ]
    np.testing.assert_array_equal(predict(shop, *histories), np.concatenate(alone))


@st.composite
def shops_and_histories(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    num_items = sum(sizes)
    weights = st.floats(0.1, 5.0)
    labels = {name: (-1, *(draw(st.integers(0, 3)) for _ in range(num_items))) for name in ("makers", "things")}
    base = draw(st.lists(weights, min_size=len(sizes), max_size=len(sizes)))
    popularity = draw(st.lists(weights, min_size=num_items, max_size=num_items))
    partners = (0, *draw(st.permutations(range(1, num_items + 1))))
    history = draw(st.permutations(range(1, num_items + 1)))[: draw(st.integers(0, num_items - 1))]
    stay = draw(st.floats(0, 0.99))
    return tiny_shop(sizes, base, (0, *popularity), stay, partners=partners, **labels), history


@given(shops_and_histories())
@settings(deadline=None)
def test_probabilities_sum_to_one_and_seen_items_have_none(case):
    shop, history = case
    probabilities = predict(shop, history)[0]
    assert probabilities.min() >= 0
    assert probabilities.sum() == pytest.approx(1.0)
    assert not probabilities[[0, *history]].any()


def draw_next(random, shop, history):
    """The rule as the module's text tells it, one choice after the other."""
    activities = np.split(np.arange(1, shop.num_items + 1), np.cumsum(shop.sizes)[:-1])
    unseen = [[item for item in activity if item not in history] for activity in activities]
    owner = {item: number for number, activity in enumerate(activities) for item in activity}
    number = owner[history[-1]] if history and random.random() < shop.stay else None
    if number is None:
        weights = np.array([shop.base[a] + sum(owner[item] == a for item in history) for a in range(len(activities))])
        number = random.choice(len(activities), p=weights / weights.sum())
    if not unseen[number]:
        return draw_next(random, shop, history)
    newest = next((item for item in reversed(history) if owner[item] == number), None)
    weights = np.array([shop.popularity[item] * factor_of(shop, newest, item) for item in unseen[number]])
    return random.choice(unseen[number], p=weights / weights.sum())


def factor_of(shop, newest, item):
    if newest is None:
        return 1
    factor = shop.loyalty if shop.makers[newest] == shop.makers[item] else 1
    factor *= shop.accessory if (shop.things[newest] + 1) % shop.num_things == shop.things[item] else 1
    return factor * (shop.partnership if shop.partners[newest] == item else 1)


def deviation(counts, probabilities):
    """Pearson's chi-square over the columns that can occur."""
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = counts.sum() * probabilities[possible]
    return (((counts[possible] - expected) ** 2) / expected).sum()


CHI_SQUARE_4_DF = 23.5  # exceeded with probability 1e-4; the seeds are fixed anyway


@pytest.mark.parametrize("history", [[], [1], [1, 4], [4, 2, 1]])
def test_a_naive_sampler_of_the_rule_agrees_with_the_probabilities(history):
    shop, random = tiny_shop(), np.random.default_rng(5)
    draws = [draw_next(random, shop, history) for _ in range(3000)]
    assert deviation(np.bincount(draws, minlength=6), predict(shop, history)[0]) < CHI_SQUARE_4_DF


def test_simulated_purchases_agree_with_the_probabilities(shop, purchases):
    """The true probability of what was bought is, on average, what the probabilities themselves say."""
    rows, lengths = np.arange(300), purchases.lengths[:300] - 1
    items, times = purchases.items[:300], purchases.timestamps[rows, lengths]
    probabilities = shop.predict(items, lengths, times)
    bought = probabilities[rows, items[rows, lengths]]
    assert bought.min() > 0
    assert bought.mean() == pytest.approx((probabilities**2).sum(axis=1).mean(), abs=0.03)
    np.testing.assert_array_equal(purchases.best_ranks[:300], (probabilities > bought[:, None]).sum(axis=1))


def test_the_same_seed_gives_the_same_shop_and_another_seed_another(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_shop(tmp_path / name, seed=seed, num_users=50)
    read = {
        name: [(tmp_path / name / file).read_bytes() for file in ("interactions.csv", "items.csv")] for name in "abc"
    }
    assert read["a"] == read["b"]
    assert read["a"][0] != read["c"][0]
    assert read["a"][1] != read["c"][1]


def test_titles_name_maker_thing_and_activity_and_ids_name_nothing(shop):
    makers, things = ([word.strip() for word in text.split(",")] for text in (MAKERS, THINGS))
    activities = {name.strip().lower() for name in ACTIVITIES.split(",")}
    named = {}
    for item, title in enumerate(shop.titles, start=1):
        product, activity = title.split(" for ")
        maker, _, thing = product.split()
        assert (maker, thing) == (makers[shop.makers[item]], things[shop.things[item]])
        assert activity in activities and named.setdefault(shop.activity_of[item], activity) == activity
    assert len(set(named.values())) == len(shop.sizes)
    assert len(set(shop.titles)) == len(set(shop.item_ids)) == shop.num_items >= 999 + MAX_EVENTS
    order = [int(item_id[1:]) for item_id in shop.item_ids]
    assert sorted(order) == list(range(1, shop.num_items + 1)) != order
    own = shop.activity_of[shop.partners] == shop.activity_of
    assert own.all() and sorted(shop.partners) == list(range(shop.num_items + 1))


def test_histories_are_long_enough_never_repeat_and_follow_releases(shop, purchases):
    assert purchases.lengths.min() == MIN_EVENTS
    assert purchases.lengths.max() == MAX_EVENTS
    assert 9 < purchases.lengths.mean() < 12
    for items, length, times in zip(*purchases[:3], strict=True):
        assert len(set(items[:length])) == length
        assert items[:length].all()
        assert not items[length:].any()
        assert (np.diff(times[:length]) > 0).all()
        assert (shop.released[items[:length]] <= times[:length]).all()
    late = shop.released > OPENING
    assert 0.1 < late.mean() < 0.2 and shop.released.max() <= OPENING + YEAR_S


def test_a_third_of_the_items_are_new_or_rare_and_the_shop_is_predictable(shop, purchases):
    trained = purchases.items.copy()
    for back in (1, 2):
        trained[np.arange(NUM_USERS), purchases.lengths - back] = 0
    counts = np.bincount(trained.ravel(), minlength=shop.num_items + 1)[1:]
    assert 0.25 < (counts < 5).mean() < 0.4
    quality = user_metrics(purchases.best_ranks)["ndcg@10"].mean()
    popularity = user_metrics((counts[None] > counts[purchases.items[:, 0] - 1][:, None]).sum(axis=1))["ndcg@10"]
    assert quality > 0.3 > 5 * popularity.mean()


def test_the_raw_log_is_what_was_simulated(tmp_path):
    purchases = write_shop(tmp_path, seed=2, num_users=40)
    shop = Shop.generate(2)
    with (tmp_path / "interactions.csv").open(encoding="utf-8", newline="") as file:
        events = list(csv.DictReader(file))
    with (tmp_path / "items.csv").open(encoding="utf-8", newline="") as file:
        titles = {row["item_id"]: row["title"] for row in csv.DictReader(file)}
    assert titles == dict(zip(shop.item_ids, shop.titles, strict=True))
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    for user, (row, length) in enumerate(zip(purchases.items, purchases.lengths, strict=True), start=1):
        log = [event["item_id"] for event in events if event["user_id"] == f"u{user:04d}"]
        assert log == [shop.item_ids[item - 1] for item in row[:length]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interactions.csv", "items.csv"]


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="num_activities is 0; choose 1-40"):
        Shop.generate(num_activities=0)
    with pytest.raises(ConfigError, match="the shop opens with 5 items but histories have up to 25"):
        tiny_shop().simulate(3)
