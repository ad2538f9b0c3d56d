"""A simulated shop whose customers follow what titles say, and in which a third of the items are new or rarely bought.

An item belongs to an activity (bread baking), is a thing (gloves) and comes from a maker; its title names all three.
It also has a partner in its activity, which no title tells. The probability of each item to be bought next depends on
the purchases of the user so far. The rule:

1. Activity: with probability `stay`, that of the newest purchase. Otherwise it is drawn with weights `base[a]` + the
   number of purchases in activity a (a Pólya urn: purchases show tastes).
2. Item within the activity: drawn with weights popularity, times `loyalty` if it is of the same maker as the newest
   purchase in this activity, times `accessory` if it is the thing that goes with that purchase, times `partnership` if
   it is the partner of that purchase.

No item is bought twice, or before its release; an activity without such items is excluded from step 1. Makers and
things mean the same in all activities, so a title tells what an item that nobody has bought yet goes with.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slmrec.data.dataset import Ints
from slmrec.errors import ConfigError
from slmrec.files import write_atomically

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NUM_ACTIVITIES = 36
ACTIVITY_SIZES = (44, 54)
"""Minimum and maximum number of items of an activity."""
NUM_MAKERS = 12
CONCENTRATION = 2.5
"""Sum of the urn's `base`; smaller values concentrate each user on fewer activities."""
ACTIVITY_SKEW = 0.6
"""Zipf exponent of the base weights of activities."""
ITEM_SKEW = 0.5
"""Zipf exponent of the popularities of items within an activity."""
STAY = 0.5
"""Probability that the next activity is that of the newest purchase."""
LOYALTY = 5.0
"""Factor of the weight of items of the same maker."""
ACCESSORY = 15.0
"""Factor of the weight of the thing that goes with the newest one."""
PARTNERSHIP = 10.0
"""Factor of the weight of the partner of the newest one."""
NEW_SHARE = 0.15
"""Share of the items that are released in the course of the log; the others are there from the beginning."""
NEW_FROM = 0.8
"""Earliest release of these items, as a share of the period of first purchases."""
MIN_EVENTS, MAX_EVENTS = 5, 25
MEAN_EXTRA_EVENTS = 6.0
"""Mean of the geometric number of events above the minimum, before truncation at the maximum."""
MEAN_WAIT_S = 7 * 86_400
"""Mean time between two purchases of a user, in seconds."""
OPENING = 1_700_000_000
"""The earliest first purchase, in seconds since 1970-01-01 UTC."""
YEAR_S = 31_536_000
"""The period of the users' first purchases, in seconds."""
_USERS_AT_ONCE = 500

ACTIVITIES = """
Trail running, Sea kayaking, Bread baking, Watercolour painting, Bird watching, Chess, Film photography,
Vegetable gardening, Rock climbing, Home brewing, Wood carving, Star gazing, Jazz guitar, Knitting, Bicycle touring,
Fly fishing, Pottery, Calligraphy, Yoga, Bee keeping, Board games, Leather craft, Cheese making, Model railways,
Ice skating, Coffee roasting, Pizza making, Wild swimming, Origami, Book binding, Archery, Piano practice,
Bonsai growing, Sailing, Candle making, Table tennis, Mushroom foraging, Stamp collecting, Tango dancing, Fencing
"""
MAKERS = "Alder, Brightwater, Corvid, Dunlin, Elmfield, Fjordby, Gable, Harrow, Ibex, Juniper, Kestrel, Larkspur"
THINGS = """
shoes, gloves, cap, apron, bag, bottle, lamp, stand, case, strap, brush, cloth, tin, scale, timer, cushion, basket,
clip, notebook, guide, map, workbook, poster, calendar
"""
"""Each thing goes with the one before it, the first with the last."""
QUALITIES = "light, sturdy, compact, classic, folding, warm, bright, quiet, soft, everyday, spare, deluxe, plain, woven"


class Purchases(NamedTuple):
    """Purchases of users, oldest first: one row per user, the shop's items 1..V, padded with 0 on the right."""

    items: Ints
    """(U, L): items."""
    lengths: Ints
    """(U,): numbers of purchases."""
    timestamps: Ints
    """(U, L) seconds, increasing for each user; 0 where `items` is padded."""
    best_ranks: Ints
    """(U,): 0-based rank of the last purchase in the order of the true probabilities, which no ranking is better than
    on average."""


@dataclass(frozen=True, eq=False)
class Shop:
    """The catalogue and the parameters of the rule; items are numbered 1..V, activity by activity."""

    item_ids: tuple[str, ...]
    """Item i has the id at index i-1."""
    titles: tuple[str, ...]
    sizes: Ints
    """(A,): the number of items of each activity."""
    base: Floats
    """(A,): the weights of the activities before the first purchase."""
    makers: Ints
    """(V+1,): the maker of each item, from 0; -1 for the padding item."""
    things: Ints
    """(V+1,): the thing that each item is, from 0; -1 for the padding item."""
    partners: Ints
    """(V+1,): the partner of each item; 0 for the padding item."""
    popularity: Floats
    """(V+1,): the weights of the items within their activity; 0 for the padding item."""
    released: Ints
    """(V+1,): seconds; an item is not bought earlier."""
    num_things: int
    stay: float
    """Probability that the next activity is that of the newest purchase."""
    loyalty: float
    """Factor of the weight of items of the maker of the newest purchase."""
    accessory: float
    """Factor of the weight of the thing that goes with the newest purchase."""
    partnership: float
    """Factor of the weight of the partner of the newest purchase."""

    @classmethod
    def generate(cls, seed: int = 0, num_activities: int = NUM_ACTIVITIES) -> "Shop":
        """Generate a shop; equal seeds give equal shops.

        Raises:
            ConfigError: `num_activities` is out of range.

        Example:
            >>> Shop.generate(seed=1, num_activities=3).num_items == Shop.generate(seed=1, num_activities=3).num_items
            True
        """
        known, makers, things = _words(ACTIVITIES), _words(MAKERS), _words(THINGS)
        if not 1 <= num_activities <= len(known):
            raise ConfigError(f"num_activities is {num_activities}; choose 1-{len(known)}")
        random = np.random.default_rng((seed, 0))
        names = [known[number] for number in random.permutation(len(known))[:num_activities]]
        sizes = random.integers(ACTIVITY_SIZES[0], ACTIVITY_SIZES[1], size=num_activities, endpoint=True)
        num_items, firsts = int(sizes.sum()), _firsts(sizes)
        pairs = np.concatenate([random.permutation(len(makers) * len(things))[:size] for size in sizes])
        partners = [first + random.permutation(size) for first, size in zip(firsts, sizes, strict=True)]
        liking = _zipf(random, num_activities, ACTIVITY_SKEW)
        releases = OPENING + (random.uniform(NEW_FROM, 1, num_items) * YEAR_S).astype(np.int64)
        owners = np.repeat(np.array(names, dtype=object), sizes)
        qualities = random.choice(_words(QUALITIES), num_items)
        titles = (
            f"{makers[pair // len(things)]} {quality} {things[pair % len(things)]} for {owner.lower()}"
            for pair, quality, owner in zip(pairs, qualities, owners, strict=True)
        )
        return cls(
            item_ids=tuple(f"p{number:04d}" for number in random.permutation(num_items) + 1),
            titles=tuple(titles),
            sizes=sizes,
            base=CONCENTRATION * liking / liking.sum(),
            makers=np.concatenate([[-1], pairs // len(things)]),
            things=np.concatenate([[-1], pairs % len(things)]),
            partners=np.concatenate([[0], *partners]),
            popularity=np.concatenate([[0.0], *(_zipf(random, int(size), ITEM_SKEW) for size in sizes)]),
            released=np.concatenate([[0], np.where(random.random(num_items) < NEW_SHARE, releases, 0)]),
            num_things=len(things),
            stay=STAY,
            loyalty=LOYALTY,
            accessory=ACCESSORY,
            partnership=PARTNERSHIP,
        )

    @property
    def num_items(self) -> int:
        """The number of items V."""
        return len(self.item_ids)

    @cached_property
    def activity_of(self) -> Ints:
        """(V+1,): the activity of each item, from 0; A for the padding item."""
        return np.concatenate([[len(self.sizes)], np.repeat(np.arange(len(self.sizes)), self.sizes)])

    @cached_property
    def _firsts(self) -> Ints:
        return _firsts(self.sizes)

    def predict(self, items: Ints, lengths: Ints, times: Ints) -> Floats:
        """Return the exact probability of each item to be bought next.

        Args:
            items: (B, L) histories, oldest first, padded with 0 on the right; L may be 0.
            lengths: (B,) the lengths of the histories; 0 for a new user.
            times: (B,) the times of the next purchases.

        Returns:
            (B, V+1): 0 for padding, and for items that are seen or not released. Rows sum to 1, except those of users
            who bought all items, which are 0.
        """
        items = np.where(np.arange(items.shape[1]) < lengths[:, None], items, 0)
        unseen = self.released <= times[:, None]
        unseen[np.arange(len(items))[:, None], items] = False
        unseen[:, 0] = False
        weights = np.where(unseen, self.popularity, 0.0)
        newest = self._newest(items)[:, self.activity_of]
        known = newest > 0
        weights[known & (self.makers[newest] == self.makers)] *= self.loyalty
        weights[known & ((self.things[newest] + 1) % self.num_things == self.things)] *= self.accessory
        weights[known & (self.partners[newest] == np.arange(self.num_items + 1))] *= self.partnership
        totals = np.add.reduceat(weights, self._firsts, axis=1)
        scale = _ratio(self._predict_activities(items, lengths, totals > 0), totals)
        weights[:, 1:] *= np.repeat(scale, self.sizes, axis=1)
        return weights

    def _predict_activities(self, items: Ints, lengths: Ints, possible: Bools) -> Floats:
        """Return (B, A) the probability of each activity to contain the next item."""
        rows = np.arange(len(items))
        urn = np.tile(np.append(self.base, 0.0), (len(items), 1))
        for column in items.T:
            urn[rows, self.activity_of[column]] += 1
        urn = urn[:, :-1]
        weights = (1 - self.stay) * urn / urn.sum(axis=1, keepdims=True)
        known = np.flatnonzero(lengths)
        weights[known, self.activity_of[items[known, lengths[known] - 1]]] += self.stay
        weights[~possible] = 0.0
        return _ratio(weights, weights.sum(axis=1, keepdims=True))

    def _newest(self, items: Ints) -> Ints:
        """Return (B, A+1) the newest purchase in each activity; 0 if there is none."""
        newest = np.zeros((len(items), len(self.sizes) + 1), dtype=np.int64)
        rows = np.arange(len(items))
        for column in items.T:
            newest[rows, self.activity_of[column]] = column
        return newest

    def simulate(self, num_users: int, seed: int = 0) -> Purchases:
        """Simulate the purchases of users; equal seeds give equal purchases.

        Raises:
            ConfigError: the shop has too few items for the longest histories.
        """
        num_old = int((self.released[1:] <= OPENING).sum())
        if num_old < MAX_EVENTS:
            raise ConfigError(f"the shop opens with {num_old} items but histories have up to {MAX_EVENTS}; add items")
        random = np.random.default_rng((seed, 1))
        extra = random.geometric(1 / (1 + MEAN_EXTRA_EVENTS), size=num_users) - 1
        lengths = np.minimum(MIN_EVENTS + extra, MAX_EVENTS)
        items = np.zeros((num_users, MAX_EVENTS), dtype=np.int64)
        timestamps, best_ranks = _times(random, items.shape), np.zeros(num_users, dtype=np.int64)
        for length in range(MAX_EVENTS):
            buying = np.flatnonzero(lengths > length)
            for users in np.split(buying, range(_USERS_AT_ONCE, len(buying), _USERS_AT_ONCE)):
                past = items[users, :length], np.full(len(users), length), timestamps[users, length]
                probabilities = self.predict(*past)
                drawn = _draw(random, probabilities)
                items[users, length] = drawn
                best_ranks[users] = (probabilities > probabilities[np.arange(len(users)), drawn][:, None]).sum(axis=1)
        return Purchases(items, lengths, np.where(items > 0, timestamps, 0), best_ranks)


def write_shop(folder: Path, seed: int = 0, num_users: int = 2000) -> Purchases:
    """Simulate a shop and write its raw log: `interactions.csv`, ordered by time, and `items.csv`.

    Returns:
        The purchases, of the items of `Shop.generate(seed)`.
    """
    shop = Shop.generate(seed)
    purchases = shop.simulate(num_users, seed)
    users, positions = np.nonzero(purchases.items)
    order = np.argsort(purchases.timestamps[users, positions], kind="stable")
    users, positions = users[order], positions[order]
    width = max(4, len(str(num_users)))
    events = (
        (f"u{user + 1:0{width}d}", shop.item_ids[purchases.items[user, position] - 1], time)
        for user, position, time in zip(users, positions, purchases.timestamps[users, positions], strict=True)
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "items.csv", ("item_id", "title"), sorted(zip(shop.item_ids, shop.titles, strict=True)))
    _write_csv(folder / "interactions.csv", ("user_id", "item_id", "timestamp"), events)
    return purchases


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _zipf(random: np.random.Generator, size: int, exponent: float) -> Floats:
    """Return `size` weights that follow Zipf's law, with shuffled ranks."""
    return random.permutation(np.arange(1, size + 1) ** -exponent)


def _firsts(sizes: Ints) -> Ints:
    """Return the first item of each activity."""
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]) + 1


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
    waits = 60 + random.exponential(MEAN_WAIT_S, size=shape).astype(np.int64)
    waits[:, 0] = random.integers(YEAR_S, size=shape[0])
    return OPENING + np.cumsum(waits, axis=1)
