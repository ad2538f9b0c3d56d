"""Effect of rules on the items of a catalogue, computed once for each rule and kept."""

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from slmrec.errors import ConfigError
from slmrec.inference.catalogue import Catalogue
from slmrec.inference.rules.columns import ItemColumns
from slmrec.inference.rules.rule import Rule
from slmrec.models.folder import Vocabulary

_LOG = logging.getLogger(__name__)
ValueT = TypeVar("ValueT")
_MAX_BYTES = 2**27
"""Size of the effects that are kept; the least recently used ones are computed again."""


class Cap(NamedTuple):
    """Largest number of items of one value."""

    codes: Tensor
    """(V+1,) int64 value of each item; 0: not capped."""
    limit: int


@dataclass(frozen=True, eq=False)
class RuleEffect:
    """Effect of some rules together."""

    allowed: Tensor | None = None
    """(V+1,) bool, items that may be recommended; None: all."""
    boost: Tensor | None = None
    """(V+1,) float32, added to the scores, in standard deviations of a user's scores; None: nothing."""
    caps: tuple[Cap, ...] = ()

    @property
    def only_filters(self) -> bool:
        """True if neither scores nor the order change."""
        return self.boost is None and not self.caps


class ItemRules:
    """Rules of one model: the standing ones, and the effects of all rules that were used lately.

    Args:
        vocabulary: Items with their columns.
        catalogue: Ids of the items.
        device: Device of the effects.
        standing: Rules that hold for every request.

    Raises:
        ConfigError: A standing rule does not fit the columns, or no item would be left.
    """

    def __init__(
        self, vocabulary: Vocabulary, catalogue: Catalogue, device: torch.device, standing: tuple[Rule, ...] = ()
    ) -> None:
        self._columns = ItemColumns(vocabulary, catalogue)
        self._device, self._removed = device, sorted(catalogue.removed)
        self._parts, self._effects = _Cache[Tensor](), _Cache[RuleEffect]()
        self.standing = standing
        self.warn_of_unmatched(standing)
        effect = self.effect()
        if effect is not None and effect.allowed is not None and not self._leaves_items(effect.allowed):
            raise ConfigError("the rules leave no item to recommend; loosen one of them")

    def effect(self, rules: Sequence[Rule] = (), where: str = "rules") -> RuleEffect | None:
        """Return the effect of the standing rules and some more; the same object for equal rules.

        Args:
            rules: Rules of a request.
            where: Name of these rules in messages.

        Raises:
            ConfigError: A column does not exist, or a value does not fit its type.
        """
        if not rules and not self.standing:
            return None
        key = b"".join(_key(rule) for rule in rules)
        return self._effects.get(key, lambda: self._effect([*self.standing, *rules], len(self.standing), where))

    def effects_for_users(self, shared: Sequence[Rule], own: Sequence[tuple[Rule, ...]]) -> list[RuleEffect | None]:
        """Return the effect of shared rules and those of each user; the same object for equal ones."""
        texts = list(map(repr, own))  # the values 1 and true are equal, but their texts differ
        effects = {text: self.effect([*shared, *rules]) for text, rules in dict(zip(texts, own, strict=True)).items()}
        return [effects[text] for text in texts]

    @property
    def columns(self) -> list[str]:
        """Columns that rules may name."""
        return self._columns.names

    def warn_of_unmatched(self, rules: Sequence[Rule], where: str = "rules") -> None:
        """Log a warning of each rule whose values no item has; it may be misspelt."""
        self.effect(rules, where)  # reports the first invalid rule
        for number, rule in enumerate(rules):
            if rule.values is not None and not self._part(rule).any():
                _LOG.warning("%s[%d]: no item has a value of the column %s that it names", where, number, rule.column)

    def _effect(self, rules: list[Rule], num_standing: int, where: str) -> RuleEffect:
        allowed: Tensor | None = None
        boost: Tensor | None = None
        caps: list[Cap] = []
        for number, rule in enumerate(rules):
            try:
                part = self._part(rule)
            except ConfigError as error:
                place = f"{where}[{number - num_standing}]" if number >= num_standing else f"rules[{number}]"
                raise ConfigError(f"{place}: {error}") from None
            if rule.do in ("exclude", "only"):
                kept = part if rule.do == "only" else ~part
                allowed = kept if allowed is None else allowed & kept
            elif rule.do == "boost":
                boost = part.float() * (rule.by or 0.0) + (0.0 if boost is None else boost)
            else:
                caps.append(Cap(part, int(rule.by or 1)))
        return RuleEffect(allowed, boost, tuple(caps))

    def _part(self, rule: Rule) -> Tensor:
        """Return the matching items, or the codes of a cap; rules that differ in `do` and `by` alone share them."""
        is_cap = rule.do == "cap"
        return self._parts.get(_key(rule, is_cap, short=True), lambda: self._compute(rule).to(self._device))

    def _compute(self, rule: Rule) -> Tensor:
        if rule.do != "cap":
            return torch.from_numpy(self._columns.matching(rule.column, rule.values or ()))
        codes = self._columns.codes(rule.column)
        if rule.values is not None:
            codes = codes * self._columns.matching(rule.column, rule.values)
        return torch.from_numpy(codes)

    def _leaves_items(self, allowed: Tensor) -> bool:
        left = allowed.clone()
        left[[0, *self._removed]] = False
        return bool(left.any())


class _Cache(Generic[ValueT]):
    """Least recently used values, within a number of bytes."""

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, tuple[ValueT, int]] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def get(self, key: bytes, make: Callable[[], ValueT]) -> ValueT:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        with self._lock:
            if key not in self._values:
                size = _size_of(value)
                self._values[key] = value, size
                self._num_bytes += size
            while self._num_bytes > _MAX_BYTES and len(self._values) > 1:
                self._num_bytes -= self._values.popitem(last=False)[1][1]
            return value


def _size_of(value: object) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    assert isinstance(value, RuleEffect)
    own = [part for part in (value.allowed, value.boost) if part is not None]
    return sum(part.nbytes for part in own) + 1024


def _key(rule: Rule, is_cap: bool = False, short: bool = False) -> bytes:
    """Return a hash of a rule; 1, 1.0 and true differ."""
    values = None if rule.values is None else [[type(value).__name__, str(value)] for value in rule.values]
    facts = [is_cap, rule.column, values] if short else [rule.do, rule.by, rule.column, values]
    return hashlib.sha256(json.dumps(facts).encode()).digest()
