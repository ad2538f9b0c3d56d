"""Incremental decoding: appended events give the user vectors of the whole history."""

from typing import Any

import pytest
import torch
from artefacts import MODELS
from test_engine import ARCHITECTURES, MAX_HISTORY, batch_of, build, relative
from torch import Tensor

from slmrec.inference.freeze import freeze
from slmrec.inference.incremental import FrozenDecoder, KVCache
from slmrec.types import Histories

PROMPTS = pytest.mark.parametrize("prompt", [(5, 3), (0, 0)], ids=["prompt", "no prompt"])
FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])


@torch.no_grad()
def encode_whole(model: Any, history: list[int]) -> Tensor:
    newest = torch.tensor([history[-model.max_history_items :]])
    users: Tensor = model.encode(Histories(newest, torch.tensor([newest.shape[1]]))).users[0]
    return users


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_appended_event_gives_what_the_whole_history_gives(model_type: str) -> None:
    model = build(model_type)
    frozen, items = freeze(model), batch_of([MAX_HISTORY + 4]).histories.items[0].tolist()
    states = [frozen.new_state()]
    for seen in range(1, len(items) + 1):
        appended = frozen.append(states, [[items[seen - 1]]]).users[0]
        assert relative(appended, encode_whole(model, items[:seen])) <= 1e-5
        assert states[0].items == items[:seen][-MAX_HISTORY:]


@FUSED
@PROMPTS
def test_events_of_many_users_are_appended_together(prompt: tuple[int, int], fused: bool) -> None:
    model = build(prompt=prompt)
    frozen = freeze(model, fused=fused)
    histories = batch_of([MAX_HISTORY + 4] * 3).histories.items.tolist()
    states = [frozen.new_state() for _ in histories]
    seen = [0] * len(histories)
    for counts in ([1, 2, 5], [3, 1, 1], [1, 4, 1], [MAX_HISTORY + 2, 1, 6]):  # at last, some no longer fit
        stops = [min(start + count, MAX_HISTORY + 4) for start, count in zip(seen, counts, strict=True)]
        news = [history[start:stop] for history, start, stop in zip(histories, seen, stops, strict=True)]
        users, seen = frozen.append(states, news).users, stops
        for user, history, stop, state in zip(users, histories, stops, states, strict=True):
            assert relative(user, encode_whole(model, history[:stop])) <= 1e-5
            assert state.items == history[:stop][-MAX_HISTORY:]
            assert isinstance(state, KVCache) and state.keys_values is not None
            assert len(state.keys_values) == len(state.items)


@FUSED
@PROMPTS
def test_after_sliding_the_window_one_item_is_processed(
    prompt: tuple[int, int], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processed = build(prompt=prompt), []
    frozen = freeze(model, fused=fused)
    inputs_of = FrozenDecoder._inputs_of
    monkeypatch.setattr(
        FrozenDecoder, "_inputs_of", lambda own, items: processed.append(len(items)) or inputs_of(own, items)
    )
    full, other = batch_of([MAX_HISTORY + 3, 2]).histories.items.tolist()
    states = [frozen.new_state(), frozen.new_state()]
    frozen.append(states, [full[:MAX_HISTORY], other[:2]])
    for seen in range(MAX_HISTORY, MAX_HISTORY + 3):
        frozen.slide_window(states)
        assert (states[0].items, states[1].items) == (full[seen + 1 - MAX_HISTORY : seen], other[:2])
        processed.clear()
        appended = frozen.append(states[:1], [[full[seen]]]).users[0]
        assert processed == [1]
        assert relative(appended, encode_whole(model, full[: seen + 1])) <= 1e-5


def test_right_aligned_positions_encode_the_window_again() -> None:
    model = build(positions="right_aligned")
    frozen = freeze(model)
    assert not frozen.is_incremental
    states, items = [frozen.new_state()], [3, 4, 5]
    for seen in range(1, 4):
        assert relative(frozen.append(states, [[items[seen - 1]]]).users[0], encode_whole(model, items[:seen])) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_appended_to(name: str) -> None:
    model = MODELS[name]()
    frozen, items = freeze(model), [1, 2, 3, 4, 5, 6, 7, 8]  # longer than the window
    states = [frozen.new_state()]
    for seen in range(1, len(items) + 1):
        frozen.slide_window(states)
        appended = frozen.append(states, [[items[seen - 1]]]).users[0]
        torch.testing.assert_close(appended, encode_whole(model, items[:seen]), rtol=1e-4, atol=1e-5)
        assert states[0].items == items[:seen][-model.max_history_items :]


def test_the_cache_of_a_user_does_not_keep_the_batch_alive() -> None:
    frozen = freeze(build())
    states = [frozen.new_state() for _ in range(4)]
    frozen.append(states, [[1], [2, 3], [4], [5, 6, 7]])
    for state in states:
        assert state.keys_values.untyped_storage().nbytes() == 4 * state.keys_values.numel()
