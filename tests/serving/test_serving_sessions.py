"""A session answers as the whole history would."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import ITEMS, LIMITS, MAX_HISTORY, Client, serving

from slmrec.data.dataset import Dataset
from slmrec.models.folder import save_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.serving.engine import Engine
from slmrec.serving.loading import load
from slmrec.serving.messages import Query


@pytest.fixture(scope="module", params=["decoder", "sasrec"])
def served(
    request: pytest.FixtureRequest, student: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    folder = student
    if request.param == "sasrec":  # has no incremental path
        folder = tmp_path_factory.mktemp("sasrec")
        model = SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=MAX_HISTORY))
        save_recommender(model, tiny_dataset, folder, "tiny", {})
    with serving(folder) as client:
        yield client


def assert_like_the_whole(client: Client, answer: dict[str, Any], history: list[str], **options: Any) -> None:
    whole = client.recommend(history=history, **options)
    assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in whole["items"]]
    scores = [item["score"] for item in whole["items"]]
    assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-4)
    assert answer["fallback"] == whole["fallback"]


@given(st.lists(st.lists(st.sampled_from([*ITEMS, "nope"]), max_size=5), min_size=1, max_size=8), st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_session_answers_as_the_whole_history(served: Client, visits: list[list[str]], filter_seen: bool) -> None:
    history: list[str] = []
    for number, events in enumerate(visits):
        given_as = {"history": events} if number == 0 else {"events": events}
        answer = served.recommend(session_id="s", k=12, filter_seen=filter_seen, **given_as)
        history = [*history, *(item for item in events if item in ITEMS)][-LIMITS.max_history :]
        assert answer["session"]["num_items"] == len(history)
        assert_like_the_whole(served, answer, history, k=12, filter_seen=filter_seen)


def test_events_of_one_request_come_in_order(served: Client) -> None:
    several = [{"session_id": "a", "history": ["i01"]}, {"session_id": "b", "history": ["i05"]}]
    several += [{"session_id": "a", "events": ["i02", "i03"]}, {"session_id": "a", "events": ["i04"]}]
    answers = served.recommend(requests=several)["answers"]
    assert [answer["session"]["num_items"] for answer in answers] == [1, 1, 3, 4]
    for answer, history in zip(answers, [["i01"], ["i05"], ["i01", "i02", "i03"], ITEMS[1:5]], strict=True):
        assert_like_the_whole(served, answer, history)


def test_a_refused_request_leaves_sessions_as_they_were(served: Client) -> None:
    served.recommend(session_id="r", history=["i01"])
    wrong = [{"session_id": "r", "events": ["i02"]}, {"session_id": "r", "events": [], "candidates": ["nope"]}]
    assert served.ask("/recommend", {"requests": wrong})[0] == 422
    assert served.recommend(session_id="r", events=[])["session"] == {"session_id": "r", "new": False, "num_items": 1}


def test_the_session_unused_for_longest_goes(student: Path) -> None:
    with serving(student, replace(LIMITS, max_sessions=2)) as client:
        new = [client.recommend(session_id=name, events=["i01"])["session"]["new"] for name in "abacab"]
        assert new == [True, True, False, True, False, True]
        metrics = client.get("/metrics").splitlines()
    assert 'slmrec_sessions{model="student"} 2.0' in metrics
    assert 'slmrec_sessions_evicted{model="student"} 2.0' in metrics


def test_room_is_made_in_full_sessions_when_nothing_waits(student: Path) -> None:
    engine = Engine(load(student), LIMITS)
    history = ITEMS[: MAX_HISTORY + 2]
    engine.answer([[Query(session_id="full", history=history[:MAX_HISTORY])], [Query(session_id="short", history=[])]])
    for item in history[MAX_HISTORY:]:
        assert (engine.read_ahead(), engine.read_ahead()) == (True, False)
        state: Any = engine.sessions.resume("full").state
        assert len(state.items) == MAX_HISTORY - 1
        found = engine.answer([[Query(session_id="full", events=[item])]])[0][0]
    whole = engine.answer([[Query(history=history)]])[0][0]
    assert [item for item, _ in found.ranked] == [item for item, _ in whole.ranked]
    assert [score for _, score in found.ranked] == pytest.approx([score for _, score in whole.ranked], abs=1e-4)


def test_a_session_keeps_what_the_model_reads_though_a_request_may_give_less(student: Path) -> None:
    engine = Engine(load(student), replace(LIMITS, max_history=2))
    history = ITEMS[: MAX_HISTORY + 1]
    for item in history:
        found = engine.answer([[Query(session_id="s", events=[item], filter_seen=False)]])[0][0]
    assert engine.sessions.resume("s").history == [int(item[1:]) + 1 for item in history[-MAX_HISTORY:]]
    whole = engine.answer([[Query(history=history, filter_seen=False)]])[0][0]
    assert [item for item, _ in found.ranked] == [item for item, _ in whole.ranked]


def test_a_model_that_took_over_in_between_reads_the_session_anew(student: Path) -> None:
    engine = Engine(load(student), LIMITS)
    engine.answer([[Query(session_id="s", history=ITEMS[:MAX_HISTORY])]])
    engine.replace(load(student))
    assert engine.read_ahead() and engine.sessions.resume("s").state is None


def test_a_failure_forgets_the_sessions_it_touched(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(student) as client:
        client.recommend(session_id="s", history=["i01"])
        with monkeypatch.context() as patch:
            patch.setattr("slmrec.serving.engine.update_vectors", lambda *_: 1 / 0)
            status, _, content = client.ask("/recommend", {"session_id": "s", "events": ["i02"]})
        assert (status, content["error"]) == (500, "the request failed; see the log of the server")
        answer = client.recommend(session_id="s", events=["i03"])
        assert answer["session"]["new"]
        assert_like_the_whole(client, answer, ["i03"])


def test_a_session_is_forgotten(client: Client) -> None:
    for session_id in ("to forget", "a/b", "a\nb", "\n"):
        client.recommend(session_id=session_id, events=["i01"])
        path = f"/sessions/{quote(session_id)}"
        assert client.ask(path, method="DELETE")[::2] == (200, {"session_id": session_id, "models": ["student"]})
        assert client.ask(path, method="DELETE")[2]["models"] == []
        assert client.recommend(session_id=session_id, events=["i02"])["session"]["new"]
    assert client.ask("/sessions/" + "x" * 300, method="DELETE")[0] == 422


def test_an_unknown_path_with_a_line_break_is_answered_like_others(client: Client) -> None:
    assert [client.ask(path)[::2] for path in ("/nowhere", "/no%0Awhere")] == [
        (404, {"error": "GET /nowhere: Not Found"}),
        (404, {"error": "GET /nowhere: Not Found"}),
    ]
