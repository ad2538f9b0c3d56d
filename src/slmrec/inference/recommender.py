"""Recommender: a model folder that answers for histories in the caller's item ids."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slmrec.data.dataset import Ints
from slmrec.errors import ConfigError, TrainingError
from slmrec.inference.because import because_column, num_reasons_of, reasons_of
from slmrec.inference.catalogue import Catalogue, ItemId, ItemIdError
from slmrec.inference.devices import device_of
from slmrec.inference.dry_run import check_outputs, failures_reported
from slmrec.inference.faiss_index import ItemIndex
from slmrec.inference.freeze import freeze
from slmrec.inference.histories import Asked, KnownHistories, known_histories, read_histories
from slmrec.inference.ranking import NO_ITEMS, Ranked, Ranker, RankRequest
from slmrec.inference.recommendations import Recommendations, table_of
from slmrec.inference.rules.effect import ItemRules
from slmrec.inference.rules.rule import Rule, RulesLike, parse_rules, standing_rules, write_rules
from slmrec.models.card import About
from slmrec.models.folder import (
    Vocabulary,
    find_folder,
    fingerprint_of,
    load_recommender,
    publish,
    read_about,
    save_folder,
)
from slmrec.models.model import Model
from slmrec.storage.cache import local, uris_named
from slmrec.storage.outputs import written
from slmrec.types import Encoded

HistoriesLike = Any
"""List of histories, each a list of item ids, oldest first; or a table (Arrow, pandas, polars) with the columns
`user_id, history`, or `user_id, item_id, timestamp`."""
BATCH_USERS = 256
"""Users who are encoded and ranked at once."""


class Recommender:
    """Recommends next items for histories, oldest item first, in the caller's item ids.

    The model is frozen when the recommender is made: it is put into eval mode, and later changes of its weights are
    not taken into account.

    Args:
        model: The model, on the device where it shall answer.
        vocabulary: Item ids, titles and counts.
        about: Contents of the model card.
        index: Approximate index of the items; None: exact search.
        rules: Rules that hold for every request, such as those of `rules.json` of a model folder.

    Raises:
        ConfigError: A rule is invalid, or names a column that the items lack.

    Example:
        >>> recommender = Recommender.from_pretrained(folder)
        >>> best = recommender.recommend([["i01", "i02"]], k=5).to_lists()[0]
        >>> len(best), best[0][1] >= best[1][1], recommender.title("i01")
        (5, True, None)
        >>> recommender.encode([["i01"]]).shape, recommender.score([["i01"]], ["i05", "i06"]).shape
        (torch.Size([1, 8]), torch.Size([1, 2]))
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        about: About | None = None,
        index: ItemIndex | None = None,
        rules: RulesLike = None,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.about = about or About()
        self.catalogue = Catalogue(vocabulary)
        self.ranker = Ranker(freeze(model), self.catalogue, index)
        self.rules = ItemRules(vocabulary, self.catalogue, self.device, parse_rules(rules))

    @classmethod
    @uris_named()
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        index: str | Path | None = None,
        device: str | None = None,
        model_class: type[Model] | None = None,
    ) -> "Recommender":
        """Open a folder that a training stage or `save_pretrained` wrote, or a model of a hub.

        Args:
            source: Folder, URI such as `s3://bucket/out/distill`, or hub id (`owner/name`).
            revision: Branch, tag or commit of the hub.
            index: Index of the items, written by `slmrec export --format faiss`; None: exact search.
            device: `cpu`, `cuda` or `cuda:N`; None: a GPU if there is one.
            model_class: Architecture of your own that the folder holds; no code is imported by its name.

        Raises:
            CheckpointError: The folder does not exist, a file is missing or damaged, the backbone is not available, or
                the index belongs to other items, or `rules.json` is invalid.
            ConfigError: FAISS is not installed, the device does not exist, or `model_class` is no architecture.
            StorageError: A URI cannot be read.
        """
        chosen = device_of(device)
        folder = find_folder(source, revision)
        loaded_index = None if index is None else ItemIndex.load(local(index), fingerprint_of(folder))
        model, vocabulary = load_recommender(folder, model_class)
        about = read_about(folder)
        with failures_reported(folder), standing_rules(folder) as rules:
            recommender = cls(model.to(chosen), vocabulary, about, loaded_index, rules)
            check_outputs(recommender, folder)
        return recommender

    @property
    def device(self) -> torch.device:
        """Device on which the model answers."""
        return self.ranker.model.device

    def save_pretrained(
        self, folder: str | Path, *, license: str | None = None, language: str | Sequence[str] | None = None
    ) -> None:
        """Write a folder that `from_pretrained` opens, at a path or URI: weights, architecture, items and a card.

        The card names the `license` and `language` of `push_to_hub`.
        """
        about = self.about.published_as(license, language)
        with written(folder, replaced=True) as target:
            save_folder(target, self.model, self.vocabulary, about)
            if self.rules.standing:
                write_rules(self.rules.standing, target)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
        language: str | Sequence[str] | None = None,
    ) -> str:
        """Publish the folder on the Hugging Face hub and return the address of the commit.

        Args:
            repo_id: `owner/name`; created if it does not exist.
            private: True if a new repository is visible to its owner only.
            token: Access token; None: the token of `hf auth login`.
            license: Licence on the card, such as `mit`; None: that of the folder opened, which is none after training.
            language: Codes of the languages of the item texts, such as `["en", "de"]`; None: as for `license`.

        Raises:
            CheckpointError: The hub cannot be reached, or refuses.
            ConfigError: A licence or language is not written as the hub expects it.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, language=language)
            return publish(Path(folder), repo_id, private, token)

    def recommend(
        self,
        histories: HistoriesLike,
        k: int = 10,
        *,
        filter_seen: bool = True,
        candidates: Sequence[ItemId] | None = None,
        exclude: Sequence[ItemId] | None = None,
        user_ids: Sequence[Any] | None = None,
        timestamps: Sequence[Sequence[Any]] | None = None,
        because: bool | int = False,
        rules: RulesLike = None,
        diversity: float = 0.0,
    ) -> Recommendations:
        """Return the k best next items of each history.

        Args:
            histories: List of histories, each a list of item ids, oldest first; text and number forms of an id are the
                same, and 9.0 is 9. Or a table with the columns `user_id, history` (and `rules` and `diversity` of
                each user, where they have own ones) or `user_id, item_id, timestamp`.
            k: Number of items, at least 1.
            filter_seen: Leave out the items of the history.
            candidates: Rank these items only.
            exclude: Items that no user gets; unknown ids are ignored.
            user_ids: User ids of the answer; by default those of the table, or 0, 1, ...
            timestamps: Times of the items of each history, for models that read them (`model.timestamp_unit`): whole
                numbers in this unit, or dates. A table has them in a column `timestamps`, or `timestamp` of its events.
            because: Also return the reasons of each item in a column `because`: at most 3 items of the history that
                raise its score, found by leaving each out; a number: at most as many.
            rules: Rules in addition to the standing ones, as dictionaries: `{"do": "exclude" | "only" | "boost" |
                "cap", "column": C, "values": [...], "by": x}`; see docs/serving.md.
            diversity: Weight of the diversity of a list against its scores (MMR), from 0 to 1.

        Raises:
            ConfigError: k or `because` is below 1, a candidate is unknown, a history is no list, the number of user ids
                differs, timestamps are missing or do not fit the histories, or a rule or `diversity` is invalid.
            DataError: The table has other columns, or a value of a history is no item id.
            TrainingError: A score is NaN.

        Warns:
            UnknownItemsWarning: A history contains only unknown items, so its user gets the most popular items.

        Example:
            >>> answer = Recommender.from_pretrained(folder).recommend([["i01"]], candidates=["i03"], user_ids=["ann"])
            >>> answer.table.select(["user_id", "item_id", "rank"]).to_pylist()
            [{'user_id': 'ann', 'item_id': 'i03', 'rank': 1}]
        """
        if k < 1:
            raise ConfigError(f"k is {k}; ask for at least 1 item")
        self.ranker.check_diversity(diversity)
        num_reasons, shared = num_reasons_of(because), parse_rules(rules)
        self.rules.effect(shared)  # reports what does not fit the items before the histories are read
        check, unit = partial(self.check_asked, shared), self.model.timestamp_unit
        read = read_histories(histories, self.catalogue, unit, timestamps, user_ids, check)
        users, (known, times, unknown) = read.users, known_histories(read, self.catalogue)
        allowed = None if candidates is None else self._known_items(candidates, "candidate")
        excluded = self._items(exclude or (), "exclude")[0]
        asked = read.asked or [Asked()] * len(users)
        effects = self.rules.effects_for_users(shared, [one.rules for one in asked])
        weights = [diversity if one.diversity is None else one.diversity for one in asked]
        ranked: list[Ranked] = [NO_ITEMS] * len(known)
        for rows, encoded in self._encode_batches(known, times):
            own = [(known[row] if filter_seen else (), effects[row], weights[row]) for row in rows]
            requests = [RankRequest(k, seen, allowed, effect, weight) for seen, effect, weight in own]
            try:
                answers = self.ranker.rank(requests, encoded, excluded=excluded)
            except ValueError:
                raise self._nan_error(encoded, [users[row] for row in rows]) from None
            for row, answer in zip(rows, answers, strict=True):
                ranked[row] = answer
        fallback = tuple(user for user, history in zip(users, known, strict=True) if not history)
        lost = tuple(user for user, history, rest in zip(users, known, unknown, strict=True) if rest and not history)
        sizes = tuple(map(len, ranked))
        table = table_of(users, ranked, self.vocabulary.item_ids)
        if num_reasons:
            reasons = reasons_of(self.ranker, known, times, ranked, num_reasons)
            table = table.append_column("because", because_column(reasons, self.vocabulary.item_ids))
        lists = Recommendations(table, sizes, unknown, fallback, lost, self.title)
        lists.warn_of_lost_users(sum(map(len, known)))
        return lists

    def encode(self, histories: HistoriesLike, timestamps: Sequence[Sequence[Any]] | None = None) -> Tensor:
        """Return the user vectors (B, D), on the CPU, of histories that contain at least one known item each.

        Models that score some items separately, such as co-occurrence, do so in addition to these vectors; `score`
        takes that into account. Histories and timestamps are those that `recommend` takes.

        Raises:
            ConfigError: A history contains no known item, or is no list, or timestamps do not fit.
            DataError: A table has other columns than `recommend` takes.
        """
        known, times, _ = self._known_histories(histories, timestamps)
        vectors = torch.zeros(len(known), self.ranker.model.item_vectors().shape[1])
        for rows, encoded in self._encode_batches(known, times):
            if encoded is not None:
                vectors[rows] = encoded.users.cpu()
        return vectors

    def score(
        self,
        histories: HistoriesLike,
        items: Sequence[ItemId] | None = None,
        timestamps: Sequence[Sequence[Any]] | None = None,
    ) -> Tensor:
        """Return the scores (B, K) of some items, or (B, V) of all items in the order of `vocabulary.item_ids`.

        Raises:
            ConfigError: An item is unknown, a history contains no known item or is no list, or timestamps do not fit.
            DataError: A table has other columns than `recommend` takes.
        """
        chosen = None if items is None else self._known_items(items, "item")
        known, times, _ = self._known_histories(histories, timestamps)
        scores = torch.zeros(len(known), self.model.num_items if chosen is None else len(chosen))
        for rows, encoded in self._encode_batches(known, times):
            if encoded is not None:
                scores[rows] = self.ranker.score(encoded, chosen)
        return scores

    def title(self, item_id: ItemId) -> str | None:
        """Return the title of an item, or None if it has none."""
        item = self.catalogue.find(item_id)
        if item is None or self.vocabulary.titles is None:
            return None
        title: str | None = self.vocabulary.titles[item - 1].as_py()
        return title

    def check_asked(self, rules: Sequence[Rule], asked: Asked) -> None:
        """Refuse what a user asks for in addition to the rules of all users.

        Raises:
            ConfigError: A rule does not fit the items, there are too many, or diversity is invalid for the model.
        """
        self.ranker.check_diversity(asked.diversity or 0.0)
        self.rules.effect(asked.rules)
        parse_rules([*rules, *asked.rules])

    def _known_histories(self, histories: HistoriesLike, timestamps: Any) -> KnownHistories:
        """Return histories as items; each must contain a known item."""
        read = read_histories(histories, self.catalogue, self.model.timestamp_unit, timestamps)
        if read.asked is not None:
            raise ConfigError("the table has rules or diversity, which change no scores; leave these columns out")
        known = known_histories(read, self.catalogue)
        if not all(known.items):
            number = known.items.index([])
            raise ConfigError(f"history {number} has no item that the model knows, so it has no vector")
        return known

    def _encode_batches(
        self, known: list[list[int]], times: list[list[int]] | None
    ) -> Iterator[tuple[Ints, Encoded | None]]:
        """Yield rows and their encoded histories; None for users without history, who come last."""
        has_history = np.array([bool(history) for history in known], dtype=bool)
        rows, longest = np.flatnonzero(has_history), self.ranker.model.max_history_items
        lengths = [min(len(known[row]), longest) for row in rows]
        rows = rows[np.argsort(lengths, kind="stable")]  # histories of similar length need little padding
        for start in range(0, len(rows), BATCH_USERS):
            batch = rows[start : start + BATCH_USERS]
            own_times = None if times is None else [times[row] for row in batch]
            yield batch, self.ranker.encode([known[row] for row in batch], own_times)
        if not has_history.all():
            yield np.flatnonzero(~has_history), None

    def _known_items(self, item_ids: Sequence[ItemId], name: str) -> list[int]:
        """Return the items of ids, all of which must be known."""
        known, unknown = self._items(item_ids, f"{name}s")
        if unknown:
            raise ConfigError(f"{name} {unknown[0]!r} is not in the catalogue ({len(unknown)} unknown in all)")
        return known

    def _items(self, item_ids: Sequence[ItemId], name: str) -> tuple[list[int], list[Any]]:
        """Return the items of the known ids, and the unknown ids."""
        if isinstance(item_ids, str):
            raise ConfigError(f"{name} is {item_ids!r}, expected a list of item ids; give [{item_ids!r}]")
        try:
            return self.catalogue.split(item_ids)
        except ItemIdError as error:
            raise ConfigError(f"{name}: {error}") from None

    def _nan_error(self, encoded: Encoded | None, users: list[Any]) -> TrainingError:
        is_nan = [False] if encoded is None else self.ranker.score(encoded).isnan().any(dim=1).tolist()
        return TrainingError(
            f"scores of user {users[is_nan.index(True)]!r} are NaN, expected numbers; train the model again, with a "
            "smaller learning rate if its training finished"
        )
