"""The simulated shop: its rule by hand and by a naive sampler, its log, and the oracle against simple floors."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data.simulate import MAX_EVENTS, MIN_EVENTS, Oracle, Shop, write_shop
from slmrec.errors import ConfigError, DataError

NUM_USERS = 2500


def tiny_shop(sizes=(3, 2), base=(1.0, 3.0), popularity=(0, 1, 2, 3, 1, 4), follow=0.6, alternate=0.5):
    names = [f"f{family}-{step}" for family, size in enumerate(sizes) for step in range(1, size + 1)]
    return Shop(
        item_ids=tuple(names),
        titles=tuple(names),
        sizes=np.array(sizes),
        base=np.array(base),
        popularity=np.array(popularity, dtype=float),
        follow=follow,
        alternate=alternate,
    )


def predict(shop, *histories):
    lengths = np.array([len(history) for history in histories])
    items = np.zeros((len(histories), lengths.max()), dtype=np.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = history
    return shop.predict(items, lengths)


@pytest.fixture(scope="module")
def shop():
    return Shop.generate(seed=0)


@pytest.fixture(scope="module")
def purchases(shop):
    return shop.simulate(NUM_USERS, seed=0)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        # nothing bought: families 1/4 and 3/4, within them by popularity 1:2:3 and 1:4
        ([], [0, 0.25 / 6, 0.25 / 3, 0.25 / 2, 0.75 / 5, 0.75 * 0.8]),
        # one item, so nothing to alternate with: urn (1+1):(3+0) of 5; item 2 follows, else 2 or 3 by 2:3
        ([1], [0, 0, 0.4 * (0.6 + 0.4 * 0.4), 0.4 * 0.4 * 0.6, 0.6 / 5, 0.6 * 0.8]),
        # urn 2:4 of 6, alternate with family 0: 0.5 + 0.5/3 = 2/3; item 2 follows 1; of family 1 only item 5 is left
        ([1, 4], [0, 0, 2 / 3 * (0.6 + 0.4 * 0.4), 2 / 3 * 0.4 * 0.6, 0, 1 / 3]),
        # item 3 ends its order and 2 is seen: only item 1; urn 3:3 of 6, so 0.5 + 0.5 * 3/6
        ([2, 3], [0, 0.75, 0, 0, 0.25 * 0.2, 0.25 * 0.8]),
        # the successor of 1 is seen: by popularity, item 3 alone; family 0 is the item before the newest's
        ([2, 1], [0, 0, 0, 0.75, 0.25 * 0.2, 0.25 * 0.8]),
        # family 1 is bought up, and the item before the newest is its: everything goes to family 0
        ([4, 5], [0, 1 / 6, 2 / 6, 3 / 6, 0, 0]),
        ([1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]),
    ],
)
def test_hand_worked_probabilities(history, expected):
    np.testing.assert_allclose(predict(tiny_shop(), history)[0], expected, atol=1e-12)


def test_a_batch_gives_what_its_rows_give_alone():
    shop, histories = tiny_shop(), ([1], [4, 1, 2], [], [3, 5])
    alone = np.concatenate(
        [shop.predict(np.array([history], dtype=np.int64), np.array([len(history)])) for history in histories]
    )
    np.testing.assert_array_equal(predict(shop, *histories), alone)


@st.composite
def shops_and_histories(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    num_items = sum(sizes)
    weights = st.floats(0.1, 5.0)
    base = draw(st.lists(weights, min_size=len(sizes), max_size=len(sizes)))
    popularity = draw(st.lists(weights, min_size=num_items, max_size=num_items))
    follow, alternate = draw(st.floats(0, 1)), draw(st.floats(0, 0.99))
    history = draw(st.permutations(range(1, num_items + 1)))[: draw(st.integers(0, num_items - 1))]
    return tiny_shop(sizes, base, (0, *popularity), follow, alternate), history


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
    families = np.split(np.arange(1, shop.num_items + 1), np.cumsum(shop.sizes)[:-1])
    unseen = [[item for item in family if item not in history] for family in families]
    owner = {item: number for number, family in enumerate(families) for item in family}
    number = owner[history[-2]] if len(history) > 1 and random.random() < shop.alternate else None
    if number is None:
        weights = np.array([shop.base[f] + sum(owner[item] == f for item in history) for f in range(len(families))])
        number = random.choice(len(families), p=weights / weights.sum())
    if not unseen[number]:
        return draw_next(random, shop, history)
    newest = next((item for item in reversed(history) if owner[item] == number), None)
    if newest is not None and newest + 1 in unseen[number] and random.random() < shop.follow:
        return newest + 1
    weights = shop.popularity[unseen[number]]
    return random.choice(unseen[number], p=weights / weights.sum())


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
    draws = [draw_next(random, shop, history) for _ in range(4000)]
    assert deviation(np.bincount(draws, minlength=6), predict(shop, history)[0]) < CHI_SQUARE_4_DF


def test_simulated_purchases_agree_with_the_probabilities():
    shop = tiny_shop(sizes=(20, 15), popularity=(0, *range(1, 36)))
    items = shop.simulate(20_000, seed=3).items
    first = predict(shop, [])[0]
    counts = np.bincount(items[:, 0], minlength=36)
    np.testing.assert_allclose(counts / counts.sum(), first, atol=0.01)
    start = int(first.argmax())
    nexts = items[items[:, 0] == start, 1]
    np.testing.assert_allclose(np.bincount(nexts, minlength=36) / len(nexts), predict(shop, [start])[0], atol=0.03)


def test_the_oracle_is_calibrated_on_simulated_last_items(shop, purchases):
    histories, lengths, targets = last_item_split(purchases)
    probabilities = shop.predict(histories, lengths)
    hits = probabilities[np.arange(len(targets)), targets]
    expected = (probabilities**2).sum(axis=1)  # what the target's probability is, on average, when the rule holds
    assert hits.mean() == pytest.approx(expected.mean(), abs=0.02)


def test_the_same_seed_gives_the_same_shop_and_another_seed_another(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_shop(tmp_path / name, seed=seed, num_users=50)
    read = {
        name: [(tmp_path / name / file).read_bytes() for file in ("interactions.csv", "items.csv")] for name in "abc"
    }
    assert read["a"] == read["b"]
    assert read["a"][0] != read["c"][0]
    assert read["a"][1] != read["c"][1]
    one, other = Shop.generate(7), Shop.generate(7)
    np.testing.assert_array_equal(one.base, other.base)
    np.testing.assert_array_equal(one.popularity, other.popularity)


def test_a_catalogue_large_enough_with_unique_ids_and_titles(shop):
    assert shop.num_items >= 999 + MAX_EVENTS
    assert shop.num_items == shop.sizes.sum() == len(shop.titles)
    assert len(set(shop.item_ids)) == len(set(shop.titles)) == shop.num_items
    assert all("step" in title and ": " in title for title in shop.titles)


def test_histories_are_long_enough_and_never_repeat(purchases):
    assert purchases.lengths.min() == MIN_EVENTS
    assert purchases.lengths.max() == MAX_EVENTS
    assert 10 < purchases.lengths.mean() < 13
    for items, length, times in zip(*purchases, strict=True):
        assert len(set(items[:length])) == length
        assert items[:length].all()
        assert not items[length:].any()
        assert (np.diff(times[:length]) > 0).all()


def test_the_raw_log_is_what_was_simulated(tmp_path):
    shop = write_shop(tmp_path, seed=2, num_users=40)
    with (tmp_path / "interactions.csv").open(encoding="utf-8", newline="") as file:
        events = list(csv.DictReader(file))
    with (tmp_path / "items.csv").open(encoding="utf-8", newline="") as file:
        titles = {row["item_id"]: row["title"] for row in csv.DictReader(file)}
    items, lengths, _ = shop.simulate(40, seed=2)
    assert titles == dict(zip(shop.item_ids, shop.titles, strict=True))
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    for user, (row, length) in enumerate(zip(items, lengths, strict=True), start=1):
        log = [event["item_id"] for event in events if event["user_id"] == f"u{user:04d}"]
        assert log == [shop.item_ids[item - 1] for item in row[:length]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interactions.csv", "items.csv"]


def test_the_oracle_speaks_the_numbering_of_the_data_set():
    shop = tiny_shop()
    oracle = Oracle(shop, ["f1-1", "f0-3", "f0-1", "f0-2"])  # nobody bought f1-2
    scores = oracle.scores(np.array([[3, 1, 0], [4, 0, 0]]), np.array([2, 1]))
    np.testing.assert_array_equal(scores, predict(shop, [1, 4], [2])[:, [0, 4, 3, 1, 2]])


def last_item_split(purchases):
    rows, lengths = np.arange(len(purchases.items)), purchases.lengths - 1
    histories, targets = purchases.items.copy(), purchases.items[rows, lengths]
    histories[rows, lengths] = 0
    return histories, lengths, targets


def ndcg_at_10(scores, histories, targets):
    rows = np.arange(len(targets))
    scores = scores.astype(float)
    scores[rows[:, None], histories] = -1.0
    scores[:, 0] = -1.0
    target = scores[rows, targets][:, None]
    rank = (scores > target).sum(axis=1) + ((scores == target).sum(axis=1) - 1) / 2
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean()


def test_the_oracle_is_far_above_popularity_and_the_newest_item_alone(shop, purchases):
    histories, lengths, targets = last_item_split(purchases)
    bought = np.zeros((NUM_USERS, shop.num_items + 1), dtype=np.float32)
    bought[np.arange(NUM_USERS)[:, None], histories] = 1
    bought[:, 0] = 0
    popularity = bought.sum(axis=0)
    together = (bought.T @ bought)[histories[np.arange(NUM_USERS), lengths - 1]]
    oracle = ndcg_at_10(shop.predict(histories, lengths), histories, targets)
    assert oracle > 0.4
    assert oracle > 1.5 * ndcg_at_10(np.tile(popularity, (NUM_USERS, 1)), histories, targets)
    assert oracle > 1.5 * ndcg_at_10(together + popularity / (1 + popularity.max()), histories, targets)


def test_mistakes_are_named(shop):
    with pytest.raises(ConfigError, match="num_families is 0; choose 1-40"):
        Shop.generate(num_families=0)
    with pytest.raises(ConfigError, match="the shop has 5 items but histories have up to 25"):
        tiny_shop().simulate(3)
    with pytest.raises(DataError, match="no item 'tent-01'"):
        Oracle(shop, [shop.item_ids[0], "tent-01"])
