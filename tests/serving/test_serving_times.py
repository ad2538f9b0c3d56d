"""Requests with times over HTTP: a session answers as the whole history, also after another model took over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from servers import LIMITS, serving

from slmrec import Recommender
from slmrec.data.dataset import Dataset
from slmrec.models.folder import save_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.serving.engine import Engine
from slmrec.serving.examples import Example
from slmrec.serving.loading import load
from slmrec.serving.messages import Query

EVENTS = [("i01", 1_000), ("nope", 2_000), ("i02", 90_000), ("i05", 900_000), ("i09", 900_000), ("i11", 5_000_000)]


@pytest.fixture(scope="module")
def folders(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    made = {}
    for name, settings in {"timed": {"time_gaps": {}}, "plain": {}}.items():
        model = SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=4, **settings))
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        made[name] = tmp_path_factory.mktemp(name)
        save_recommender(model, tiny_dataset, made[name], name, {})
    return made


def split(events: list[tuple[str, int]], key: str = "history") -> dict[str, Any]:
    return {key: [item for item, _ in events], "timestamps": [time for _, time in events]}


def test_a_request_carries_times(folders: dict[str, Path]) -> None:
    recommender = Recommender.from_pretrained(folders["timed"])
    body, examples = split(EVENTS), [Example(user_id="ann", **split(EVENTS[:3]))]
    expected = recommender.recommend([body["history"]], 5, timestamps=[body["timestamps"]]).to_lists()[0]
    with serving(folders["timed"], examples=examples) as client:
        answers = [client.recommend(k=5, **body), *client.recommend(requests=[{"k": 5, **body}])["answers"]]
        for first in (1, 3, 5):
            client.recommend(session_id=str(first), **split(EVENTS[:first]))
            answers.append(client.recommend(session_id=str(first), k=5, **split(EVENTS[first:], "events")))
        for answer in answers:
            assert [item["item_id"] for item in answer["items"]] == [item for item, _ in expected]
            scores = [item["score"] for item in answer["items"]]
            assert scores == pytest.approx([score for _, score in expected], abs=1e-5)
        assert client.recommend(session_id="1", events=[])["items"]  # no event, so no time
        assert client.get("/model")["student"]["timestamp_unit"] == "s"
        assert client.get("/examples")["users"][0]["timestamps"] == [1_000, 90_000]
        (example,) = client.get("/openapi.json")["paths"]["/recommend"]["post"]["requestBody"]["content"].values()
        for shown in example["examples"].values():
            client.recommend(**shown["value"])
        missing = "the model reads the times of events, which are missing; give the time of each item, in s"
        for sent, message in (
            ({"history": ["i01"]}, f"timestamps: {missing}"),
            ({"session_id": "1", "events": ["i01"]}, f"timestamps: {missing}"),
            ({"requests": [split(EVENTS), {"history": ["i01"]}]}, f"requests[1].timestamps: {missing}"),
            ({"history": ["i01"], "timestamps": [1, 2]}, "timestamps: got 2 times, expected 1"),
            ({"history": ["i01", "i02"], "timestamps": [2, 1]}, "timestamps: time 2 is 1, earlier than"),
            ({"history": ["i01"], "timestamps": ["1"]}, "timestamps[0]: expected a time: a whole number"),
        ):
            status, _, content = client.ask("/recommend", sent)
            assert status == 422 and message in content["error"], content


def test_sessions_outlive_a_model_if_they_have_what_the_next_one_reads(folders: dict[str, Path]) -> None:
    engine = Engine(load(folders["plain"]), LIMITS)
    engine.answer([[Query(session_id="timed", **split(EVENTS[:3])), Query(session_id="bare", history=["i01"])]])
    engine.replace(load(folders["timed"]))
    found = engine.answer([[Query(session_id="timed", **split(EVENTS[3:], "events"))]])[0][0]
    whole = engine.answer([[Query(**split(EVENTS))]])[0][0]
    assert [item for item, _ in found.ranked] == [item for item, _ in whole.ranked]
    assert not found.session["new"] and "bare" not in engine.sessions
