"""One artefact asked in four ways: Python, the command line, HTTP and a graph of ONNX give the same answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from artefacts import decoder, ensemble, sasrec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import ITEMS, LIMITS, Client, serving

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import save_recommender
from slmrec.models.model import Model
from slmrec.models.sasrec import SasRec, SasRecConfig

pytestmark = pytest.mark.heavy

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'slmrec[onnx]'")

LONGEST_READ = 6
"""Of the tiny models."""
TIE = 1e-5
"""Scores that are closer may change places: the order of additions differs from way to way."""
Answers = list[list[tuple[str, float]]]
"""For each history, items and scores, best first."""


@dataclass(frozen=True)
class Question:
    histories: list[list[str]]
    k: int
    filter_seen: bool
    candidates: list[str] | None
    exclude: list[str]


histories = st.lists(
    st.lists(st.sampled_from([*ITEMS, "nope", "never"]), max_size=2 * LONGEST_READ + 2), min_size=1, max_size=5
)
questions = st.builds(
    Question,
    histories=histories | histories.map(lambda found: [*found, [], ["nope"], [ITEMS[3]] * 9]),
    k=st.integers(1, LIMITS.max_k),
    filter_seen=st.booleans(),
    candidates=st.none() | st.lists(st.sampled_from(ITEMS), min_size=1, max_size=LIMITS.max_candidates),
    exclude=st.lists(st.sampled_from([*ITEMS, "nope"]), max_size=12),
)


def student() -> Model:
    """As `distill` begins it: adapters merged."""
    teacher = decoder(lora=True, titles=True)
    assert isinstance(teacher, DecoderRecommender)
    return teacher.merged()


def timed() -> Model:
    torch.manual_seed(0)
    model = SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=LONGEST_READ, time_gaps={}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return Ensemble.of({"timed": model, "sasrec": sasrec()}, {"timed": 1.0, "sasrec": 0.3}).eval()


def times_of(history: list[str]) -> list[int]:
    """Return times that depend on the items, seconds to months apart."""
    return list(accumulate(7 ** (sum(map(ord, item)) % 9) for item in history))


MODELS: dict[str, Callable[[], Model]] = {"student": student, "ensemble": ensemble, "timed": timed}


class Graph:
    """The lines of docs/serving.md, for several histories at once."""

    def __init__(self, file: Path) -> None:
        self._session = onnxruntime.InferenceSession(file)
        limits = json.loads(self._session.get_modelmeta().custom_metadata_map["slmrec"])
        self._longest, self._reads_times = limits["max_history_items"], "timestamp_unit" in limits
        self._item_ids = pq.read_table(file.with_suffix(".items.parquet"))["item_id"].to_pylist()
        self._items = {item_id: item for item, item_id in enumerate(self._item_ids, 1)}

    def known(self, item_ids: list[str]) -> list[int]:
        return [self._items[item_id] for item_id in item_ids if item_id in self._items]

    def ask(self, question: Question) -> Answers:
        """Of histories that hold a known item each."""
        known = [self.known(history) for history in question.histories]
        unwanted = self.known(question.exclude)
        allowed = np.full(len(self._items) + 1, question.candidates is None)
        allowed[self.known(question.candidates or [])] = True
        inputs = {
            "items": padded([history[-self._longest :] for history in known]),
            "lengths": np.array([min(len(history), self._longest) for history in known]),
            "excluded": padded([[0, *unwanted, *(history if question.filter_seen else [])] for history in known]),
            "allowed": allowed,
            "k": np.array(question.k),
        }
        if self._reads_times:
            pairs = [zip(history, times_of(history), strict=True) for history in question.histories]
            times = [[time for item, time in pair if item in self._items] for pair in pairs]
            inputs["timestamps"] = padded([own[-self._longest :] for own in times])
        rows = zip(*self._session.run(["best", "scores"], inputs), strict=True)
        return [
            [(self._item_ids[item - 1], float(score)) for item, score in zip(best, scores, strict=True) if item]
            for best, scores in rows
        ]


def padded(rows: list[list[int]]) -> Any:
    longest = max(map(len, rows))
    return np.array([row + [0] * (longest - len(row)) for row in rows])


@dataclass(frozen=True)
class Ways:
    """All ways to one model folder."""

    folder: Path
    recommender: Recommender
    client: Client
    graph: Graph

    def python(self, question: Question) -> Answers:
        found = self.recommender.recommend(
            question.histories,
            question.k,
            filter_seen=question.filter_seen,
            candidates=question.candidates,
            exclude=question.exclude,
            timestamps=[times_of(history) for history in question.histories],
        )
        return [[(str(item_id), score) for item_id, score in row] for row in found.to_lists()]

    def command(self, question: Question, folder: Path) -> Answers:
        users = enumerate(question.histories)
        rows = [{"user_id": user, "history": own, "timestamps": times_of(own)} for user, own in users]
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        asked = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.parquet"), "--k", str(question.k)]
        asked += ["--allow-unknown"] if question.filter_seen else ["--allow-unknown", "--keep-seen"]
        for option, chosen in (("candidates", question.candidates), ("exclude-items", question.exclude)):
            if chosen:
                (folder / f"{option}.txt").write_text("\n".join(chosen), encoding="utf-8")
                asked += [f"--{option}", str(folder / f"{option}.txt")]
        assert main(["recommend", "--model", str(self.folder), *asked]) == 0
        answers: Answers = [[] for _ in rows]
        for row in pq.read_table(folder / "out.parquet").to_pylist():
            answers[row["user_id"]].append((row["item_id"], row["score"]))
            assert row["rank"] == len(answers[row["user_id"]])
        return answers

    def http(self, question: Question, at_once: bool) -> Answers:
        wish = {"k": question.k, "filter_seen": question.filter_seen, "exclude": question.exclude}
        if question.candidates is not None:
            wish["candidates"] = question.candidates
        queries = [{"history": own, "timestamps": times_of(own), **wish} for own in question.histories]
        if at_once:
            found = self.client.recommend(requests=queries)["answers"]
        else:
            found = [self.client.recommend(**query) for query in queries]
        return [[(item["item_id"], item["score"]) for item in answer["items"]] for answer in found]

    def scores(self, history: list[str]) -> dict[str, float]:
        """Of every item, by Python; without history how often it occurs."""
        vocabulary = self.recommender.vocabulary
        known = self.graph.known(history)
        times = [times_of(history)]
        values = self.recommender.score([history], timestamps=times)[0] if known else vocabulary.counts.to_pylist()
        return dict(zip(vocabulary.item_ids.to_pylist(), map(float, values), strict=True))


@pytest.fixture(scope="module", params=list(MODELS))
def ways(request: pytest.FixtureRequest, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    save_recommender(MODELS[request.param](), tiny_dataset, folder / "whole", "tiny", {})
    (folder / "gone.csv").write_text("item_id\ni03\ni11\n", encoding="utf-8")
    removed = ["--model", str(folder / "whole"), "--items", str(folder / "gone.csv"), "--output", str(folder / "model")]
    assert main(["items", "remove", *removed]) == 0
    graph = folder / "student.onnx"
    assert main(["export", "--model", str(folder / "model"), "--format", "onnx", "--output", str(graph)]) == 0
    yield from opened(folder / "model", graph)


def opened(folder: Path, graph: Path) -> Iterator[Ways]:
    with serving(folder) as client:
        yield Ways(folder, Recommender.from_pretrained(folder), client, Graph(graph))


def assert_same(found: Answers, expected: Answers, scores: list[dict[str, float]]) -> None:
    """Scores to 1e-4, and the same items but for ties."""
    for ours, theirs, exact in zip(found, expected, scores, strict=True):
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], rel=1e-4, abs=1e-4)
        assert len({item for item, _ in ours}) == len(ours)
        for (item, _), (other, _) in zip(ours, theirs, strict=True):
            assert item == other or exact[item] == pytest.approx(exact[other], rel=TIE, abs=TIE)


def one_by_one(question: Question) -> Iterator[Question]:
    for history in question.histories:
        yield Question([history], question.k, question.filter_seen, question.candidates, question.exclude)


@given(question=questions)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_four_ways_one_answer(ways: Ways, tmp_path: Path, question: Question) -> None:
    expected, scores = ways.python(question), [ways.scores(history) for history in question.histories]
    assert_same([ways.python(alone)[0] for alone in one_by_one(question)], expected, scores)
    assert_same(ways.command(question, tmp_path), expected, scores)
    assert_same(ways.http(question, at_once=True), expected, scores)
    assert_same(ways.http(question, at_once=False), expected, scores)
    filled = [row for row, history in enumerate(question.histories) if ways.graph.known(history)]
    if filled:  # a graph does not answer for users of whom nothing is known
        histories = [question.histories[row] for row in filled]
        asked = Question(histories, question.k, question.filter_seen, question.candidates, question.exclude)
        wanted, exact = [expected[row] for row in filled], [scores[row] for row in filled]
        assert_same(ways.graph.ask(asked), wanted, exact)
        assert_same([ways.graph.ask(alone)[0] for alone in one_by_one(asked)], wanted, exact)
