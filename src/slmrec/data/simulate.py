"""A simulated shop whose best possible next-item recommender is known.

Items come in ordered families, such as the steps of a course. The shop is defined by the probability of each item to
be bought next, given all earlier purchases of a user. No ranking is better on average than that by this probability,
so the quality of the `Oracle` is an upper bound for all models. The rule:

1. The next item's family is, with probability `alternate`, that of the second newest item. Otherwise it is
   drawn with weights `base[f]` + the number of family f's items bought so far (a Pólya urn: purchases show tastes).
2. Within the family it is, with probability `follow`, the item after the family's newest bought one, if there is such
   an item and it is unseen; otherwise an unseen item, drawn by popularity.

No item is bought twice; a family without unseen items is excluded from step 1.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slmrec.data.dataset import Ints
from slmrec.errors import ConfigError, DataError
from slmrec.files import write_atomically

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NUM_FAMILIES = 36
FAMILY_SIZES = (31, 37)
"""Minimum and maximum family size: at least 36 x 31 = 1,116 items, enough for 999 negatives outside any history."""
CONCENTRATION = 2.5
"""Sum of the urn's `base`; smaller values concentrate each user on fewer families."""
FAMILY_SKEW = 0.6
"""Zipf exponent of the base weights of families."""
ITEM_SKEW = 0.8
"""Zipf exponent of the popularities of items within a family."""
FOLLOW = 0.7
"""Probability that a family continues with the item after its newest bought one."""
ALTERNATE = 0.5
"""Probability that the next family is that of the second newest item, so order matters beyond the newest item."""
MIN_EVENTS, MAX_EVENTS = 5, 25
MEAN_EXTRA_EVENTS = 7.0
"""Mean of the geometric number of events above the minimum, before truncation at the maximum."""
OPENING = 1_700_000_000
"""The earliest first purchase, in seconds since 1970-01-01 UTC."""
YEAR_S = 31_536_000
"""The period of the users' first purchases, in seconds."""

FAMILIES = """
Trail running, Sea kayaking, Bread baking, Watercolour painting, Bird watching, Chess openings, Film photography,
Vegetable gardening, Rock climbing, Home brewing, Wood carving, Star gazing, Jazz guitar, Knitting, Bicycle touring,
Fly fishing, Pottery, Calligraphy, Yoga, Bee keeping, Board games, Leather craft, Cheese making, Model railways,
Ice skating, Coffee roasting, Sourdough pizza, Wild swimming, Origami, Book binding, Archery, Piano practice,
Bonsai growing, Sailing, Candle making, Table tennis, Mushroom foraging, Stamp collecting, Tango dancing, Fencing
"""
QUALITIES = "light, sturdy, compact, classic, folding, warm, bright, quiet, soft, everyday, spare, deluxe, plain, woven"
THINGS = """
guide, notebook, gloves, shoes, bag, lamp, kit, case, apron, cap, bottle, brush, strap, cloth, stand, tin, scale, timer,
map, cushion, basket, clip, knife, workbook
"""


class Purchases(NamedTuple):
    """Purchases of users, oldest first: one row per user, the shop's items 1..V, padded with 0 on the right."""

    items: Ints
    """(U, L): items."""
    lengths: Ints
    """(U,): numbers of purchases."""
    timestamps: Ints
    """(U, L) seconds, increasing for each user; 0 where `items` is padded."""


@dataclass(frozen=True, eq=False)
class Shop:
    """The catalogue and the parameters of the rule; items are numbered 1..V, family by family, in family order."""

    item_ids: tuple[str, ...]
    """Item i has the id at index i-1."""
    titles: tuple[str, ...]
    sizes: Ints
    """(F,): the number of items in each family."""
    base: Floats
    """(F,): the weights of the families before the first purchase."""
    popularity: Floats
    """(V+1,): the weights of the items within their family; 0 for the padding item."""
    follow: float
    """Probability that a family continues in its order."""
    alternate: float
    """Probability that the next family is that of the second newest item."""

    @classmethod
    def generate(cls, seed: int = 0, num_families: int = NUM_FAMILIES) -> "Shop":
        """Generate a shop; equal seeds give equal shops.

        Raises:
            ConfigError: `num_families` is out of range.

        Example:
            >>> Shop.generate(seed=1, num_families=3).num_items == Shop.generate(seed=1, num_families=3).num_items
            True
        """
        known = _words(FAMILIES)
        if not 1 <= num_families <= len(known):
            raise ConfigError(f"num_families is {num_families}; choose 1-{len(known)}")
        random = np.random.default_rng((seed, 0))
        names = [known[number] for number in random.permutation(len(known))[:num_families]]
        sizes = random.integers(FAMILY_SIZES[0], FAMILY_SIZES[1], size=num_families, endpoint=True)
        liking = _zipf(random, num_families, FAMILY_SKEW)
        return cls(
            item_ids=tuple(_item_id(name, step) for name, step in _steps(names, sizes)),
            titles=tuple(_titles(random, names, sizes)),
            sizes=sizes,
            base=CONCENTRATION * liking / liking.sum(),
            popularity=np.concatenate([[0.0], *(_zipf(random, int(size), ITEM_SKEW) for size in sizes)]),
            follow=FOLLOW,
            alternate=ALTERNATE,
        )

    @property
    def num_items(self) -> int:
        """The number of items V."""
        return len(self.item_ids)

    @cached_property
    def family_of(self) -> Ints:
        """(V+1,): the family of each item, from 0; F for the padding item."""
        num_families = len(self.sizes)
        return np.concatenate([[num_families], np.repeat(np.arange(num_families), self.sizes)])

    @cached_property
    def successor(self) -> Ints:
        """(V+1,): the next item in the family's order; 0 for the last item of a family and for the padding item."""
        following = np.arange(1, self.num_items + 2)
        following[np.concatenate([[0], np.cumsum(self.sizes)])] = 0
        return following

    def predict(self, items: Ints, lengths: Ints) -> Floats:
        """Return the exact probability of each item to be bought next.

        Args:
            items: (B, L) histories, oldest first, padded with 0 on the right; L may be 0.
            lengths: (B,) the lengths of the histories; 0 for a new user.

        Returns:
            (B, V+1): 0 for seen items and padding. Rows sum to 1, except those of users who bought all items, which
            are 0.
        """
        rows = np.arange(len(items))[:, None]
        items = np.where(np.arange(items.shape[1]) < lengths[:, None], items, 0)
        seen = np.zeros((len(items), self.num_items + 1), dtype=np.bool_)
        seen[rows, items] = True
        seen[:, 0] = True
        families, following = self._predict_families(items, lengths, seen), self._following(items, seen)
        follow = np.where(following > 0, self.follow, 0.0)
        unseen = np.where(seen, 0.0, self.popularity)
        scale = _ratio(families * (1 - follow), np.add.reduceat(unseen, self._firsts, axis=1))
        probabilities = np.concatenate([np.zeros_like(scale[:, :1]), np.repeat(scale, self.sizes, axis=1)], axis=1)
        probabilities *= unseen
        probabilities[rows, following] += families * follow
        return probabilities

    @cached_property
    def _firsts(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]) + 1

    def _predict_families(self, items: Ints, lengths: Ints, seen: Bools) -> Floats:
        """Return (B, F) the probability of each family to contain the next item."""
        bought = np.add.reduceat(seen.astype(np.int64), self._firsts, axis=1)
        urn = self.base + bought
        weights = (1 - self.alternate) * urn / urn.sum(axis=1, keepdims=True)
        known = np.flatnonzero(lengths > 1)
        weights[known, self.family_of[items[known, lengths[known] - 2]]] += self.alternate
        weights[bought == self.sizes] = 0.0
        return _ratio(weights, weights.sum(axis=1, keepdims=True))

    def _following(self, items: Ints, seen: Bools) -> Ints:
        """Return (B, F) the item after the newest bought one of each family; 0 if there is none or it is seen."""
        newest = np.zeros((len(items), len(self.sizes) + 1), dtype=np.int64)
        rows = np.arange(len(items))
        for column in items.T:
            newest[rows, self.family_of[column]] = column
        following = self.successor[newest[:, :-1]]
        return np.where(seen[rows[:, None], following], 0, following)

    def simulate(self, num_users: int, seed: int = 0) -> Purchases:
        """Simulate the purchases of users; equal seeds give equal purchases.

        Raises:
            ConfigError: the shop has too few items for the longest histories.
        """
        if self.num_items < MAX_EVENTS:
            raise ConfigError(f"the shop has {self.num_items} items but histories have up to {MAX_EVENTS}; add items")
        random = np.random.default_rng((seed, 1))
        extra = random.geometric(1 / (1 + MEAN_EXTRA_EVENTS), size=num_users) - 1
        lengths = np.minimum(MIN_EVENTS + extra, MAX_EVENTS)
        items = np.zeros((num_users, MAX_EVENTS), dtype=np.int64)
        for position in range(MAX_EVENTS):
            users = np.flatnonzero(lengths > position)
            probabilities = self.predict(items[users, :position], np.full(len(users), position))
            items[users, position] = _draw(random, probabilities)
        return Purchases(items, lengths, np.where(items > 0, _times(random, items.shape), 0))


class Oracle:
    """The best possible recommender of a shop, with the item numbers of a data set prepared from the shop's log."""

    def __init__(self, shop: Shop, item_ids: Iterable[str]) -> None:
        """Create the oracle for a catalogue.

        Args:
            shop: the shop that generated the data.
            item_ids: the ids of the data set's items 1, 2, ...; items that nobody bought may be missing.

        Raises:
            DataError: an item does not belong to the shop.
        """
        self.shop = shop
        numbers = {item_id: number for number, item_id in enumerate(shop.item_ids, start=1)}
        item_ids = list(item_ids)
        foreign = [item_id for item_id in item_ids if item_id not in numbers]
        if foreign:
            raise DataError(f"the shop has no item {foreign[0]!r}; generate it with the seed of the data")
        self._shop_items = np.array([0, *(numbers[item_id] for item_id in item_ids)])

    def scores(self, items: Ints, lengths: Ints) -> Floats:
        """Return the exact probability of each item to come next.

        Args:
            items: (B, L) complete histories with the data set's item numbers, oldest first, padded with 0 on the right.
            lengths: (B,) the lengths of the histories.

        Returns:
            (B, V+1): 0 for seen items and padding.
        """
        return self.shop.predict(self._shop_items[items], lengths)[:, self._shop_items]


def write_shop(folder: Path, seed: int = 0, num_users: int = 2500) -> Shop:
    """Simulate a shop and write its raw log: `interactions.csv`, ordered by time, and `items.csv`.

    Returns:
        The shop, equal to `Shop.generate(seed)`.
    """
    shop = Shop.generate(seed)
    items, _, timestamps = shop.simulate(num_users, seed)
    users, positions = np.nonzero(items)
    order = np.argsort(timestamps[users, positions], kind="stable")
    users, positions = users[order], positions[order]
    width = max(4, len(str(num_users)))
    events = (
        (f"u{user + 1:0{width}d}", shop.item_ids[item - 1], time)
        for user, item, time in zip(users, items[users, positions], timestamps[users, positions], strict=True)
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "items.csv", ("item_id", "title"), zip(shop.item_ids, shop.titles, strict=True))
    _write_csv(folder / "interactions.csv", ("user_id", "item_id", "timestamp"), events)
    return shop


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _zipf(random: np.random.Generator, size: int, exponent: float) -> Floats:
    """Return `size` weights that follow Zipf's law, with shuffled ranks."""
    return random.permutation(np.arange(1, size + 1) ** -exponent)


def _steps(names: Sequence[str], sizes: Ints) -> Iterable[tuple[str, int]]:
    return ((name, step) for name, size in zip(names, sizes, strict=True) for step in range(1, int(size) + 1))


def _item_id(family: str, step: int) -> str:
    return f"{family.lower().replace(' ', '-')}-{step:02d}"


def _titles(random: np.random.Generator, families: Sequence[str], sizes: Ints) -> Iterable[str]:
    qualities, things = _words(QUALITIES), _words(THINGS)
    for family, step in _steps(families, sizes):
        yield f"{family}: {random.choice(qualities)} {random.choice(things)}, step {step}"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Return `part / whole`, and 0 where `whole` is 0."""
    return part * np.divide(1.0, whole, out=np.zeros_like(whole), where=whole > 0)


def _draw(random: np.random.Generator, probabilities: Floats) -> Ints:
    """Draw one column per row; a column of probability 0 is never drawn."""
    below = np.cumsum(probabilities, axis=1)
    points = random.random((len(below), 1)) * below[:, -1:]
    drawn: Ints = (below <= points).sum(axis=1)
    return drawn


def _times(random: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    """Draw increasing times: a first purchase within one year, then waits of some days, at least one minute."""
    waits = 60 + random.exponential(3 * 86_400, size=shape).astype(np.int64)
    waits[:, 0] = random.integers(YEAR_S, size=shape[0])
    return OPENING + np.cumsum(waits, axis=1)
