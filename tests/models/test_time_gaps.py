"""The attention bias by time: its buckets, its place in the attention, and what depends on times."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slmrec.config import TimeGapSettings
from slmrec.errors import CheckpointError, DataError
from slmrec.models.blocks import GapBuckets, _bucketize
from slmrec.models.ensemble import Ensemble
from slmrec.models.loader import load_model, save_model
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch, Histories

HISTORIES = Histories(
    torch.tensor([[3, 7, 9, 2], [4, 5, 0, 0]]),
    torch.tensor([4, 2]),
    torch.tensor([[100, 100, 90_000, 5_000_000], [5, 5_000, 0, 0]]),
)


def model(**settings: Any) -> SasRec:
    torch.manual_seed(0)
    sizes = {"num_items": 20, "hidden_size": 8, "max_history_items": 6}
    made = SasRec(SasRecConfig(**{**sizes, "time_gaps": {"num_buckets": 12, "bucket_ratio": 4.0}, **settings}))
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return made.eval()


def users(made: Any, histories: Histories, every_position: bool = False) -> Tensor:
    with torch.no_grad():
        vectors: Tensor = made.encode(histories, every_position=every_position).users
    return vectors


def test_bounds_are_a_geometric_series_of_seconds() -> None:
    buckets = GapBuckets(TimeGapSettings(num_buckets=4, bucket_ratio=10.0), "ms")
    times = torch.tensor([[0, 9_999, 10_000, 99_999, 100_000, 10**15]])
    assert buckets.of(times)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 3]  # gaps to the first event
    assert buckets.of(times)[0, 0].tolist() == [0] * 6  # later events have no gap
    GapBuckets(TimeGapSettings(num_buckets=1024, bucket_ratio=1e3), "ns")  # bounds beyond 64 bits


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=6, unique=True), st.lists(st.integers(-9, 9)))
def test_the_search_of_graphs_is_that_of_torch(bounds: list[int], offsets: list[int]) -> None:
    ordered = torch.tensor(sorted(bounds))
    values = torch.tensor([bound + offset for bound in bounds for offset in (0, *offsets)])
    assert torch.equal(_bucketize(values, ordered), torch.bucketize(values, ordered, right=True))


@torch.no_grad()
def test_a_block_adds_the_biases_of_distance_and_time() -> None:
    block, gaps = model().layers[0], GapBuckets(TimeGapSettings(num_buckets=12, bucket_ratio=4.0), "s")
    states, times = torch.randn(1, 4, 8), HISTORIES.times[:1]
    scores = torch.einsum("qhd,khd->hqk", *(part(states[0]).view(4, 2, 4) for part in (block.query, block.key))) / 2
    for query in range(4):
        for key in range(4):
            bias = torch.full((2,), -torch.inf)
            if key <= query:
                bucket = int(gaps.of(times)[0, query, key])
                bias = block.distance_bias.weight[query - key] + block.gap_bias.weight[bucket]
            scores[:, query, key] += bias
    values = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), block.value(states[0]).view(4, 2, 4)).reshape(4, 8)
    found = block._attended(states, states, None, torch.arange(4)[None], gaps.of(times))
    torch.testing.assert_close(found[0], block.out(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["from_oldest", "relative", "from_newest"])
def test_every_position_is_the_prefix_that_ends_there(positions: str) -> None:
    made = model(positions=positions, low_pass={"frequencies": 2})
    found = users(made, HISTORIES, every_position=True)
    rows = [(row, length) for row, longest in enumerate((4, 2)) for length in range(1, longest + 1)]
    prefixes = [
        Histories(HISTORIES.items[[row], :length], torch.tensor([length]), HISTORIES.times[[row], :length])
        for row, length in rows
    ]
    torch.testing.assert_close(found, torch.cat([users(made, one) for one in prefixes]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(users(made, HISTORIES), found[[3, 5]], rtol=1e-4, atol=1e-5)


def test_only_the_time_between_events_counts() -> None:
    made, in_ms = model(), model()
    in_ms._gap_buckets = GapBuckets(made.settings.time_gaps, "ms")
    later, longer = (HISTORIES._replace(times=times) for times in (HISTORIES.times + 10**9, HISTORIES.times * 50))
    expected = users(made, HISTORIES)
    assert torch.equal(users(made, later), expected)
    assert torch.equal(users(in_ms, HISTORIES._replace(times=1_000 * HISTORIES.times)), expected)
    assert (users(made, longer) - expected).abs().amax(dim=1).min() > 1e-3
    with pytest.raises(DataError, match="reads the times of events, but the histories have none; give `timestamps`"):
        made.encode(HISTORIES._replace(times=None))


def test_without_the_setting_times_change_nothing() -> None:
    made = model(time_gaps=None)
    assert made.timestamp_unit is None
    assert not [name for name in made.state_dict() if "gap" in name or "distance" in name]
    assert torch.equal(users(made, HISTORIES), users(made, HISTORIES._replace(times=None)))


def test_a_folder_keeps_the_unit(tmp_path: Path) -> None:
    made = SasRec(SasRecConfig(num_items=20, hidden_size=8, time_gaps={}, timestamp_unit="ms")).eval()
    mixed = Ensemble.of({"one": made, "other": model(time_gaps=None, max_history_items=50)}, {"one": 1, "other": 1})
    for name, saved in (("alone", made), ("mixed", mixed)):
        (tmp_path / name).mkdir()
        save_model(saved, tmp_path / name)
        loaded = load_model(tmp_path / name)
        assert saved.timestamp_unit == loaded.timestamp_unit == "ms"
        assert torch.equal(users(loaded, HISTORIES), users(saved.eval(), HISTORIES))
    path = tmp_path / "alone" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "timestamp_unit": "h"}))
    with pytest.raises(CheckpointError, match="timestamp_unit is 'h', expected one of s, ms, us, ns"):
        load_model(tmp_path / "alone")


def shop(num_users: int) -> Batch:
    """Return walks over 25 items: after a pause of a minute the next item follows, after one of a day the seventh."""
    pauses = torch.where(torch.rand(num_users, 8) < 0.5, 60, 86_400)
    steps = torch.where(pauses[:, 1:-1] == 60, 1, 7).cumsum(1)
    first = torch.randint(25, (num_users, 1))
    items = torch.cat([first, first, first + steps], dim=1) % 25 + 1
    histories = Histories(items[:, :-1], torch.full((num_users,), 7), pauses.cumsum(1)[:, :-1])
    return Batch(histories, items[:, 1:].flatten(), every_position=True)


def test_a_model_learns_what_only_the_times_tell() -> None:
    """A model without times is right in half of the cases."""
    torch.manual_seed(0)
    sizes = {"num_items": 25, "hidden_size": 32, "max_history_items": 8, "dropout": 0.0, "norm_first": True}
    trained = SasRec(SasRecConfig(**sizes, positions="relative", time_gaps={}))
    loss, optimizer = NextItemLoss(trained), torch.optim.Adam(trained.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss(shop(64)).total.backward()
        optimizer.step()
    batch = shop(200)
    scores = users(trained.eval(), batch.histories, every_position=True) @ trained.item_vectors().T
    is_right = (scores[:, 1:].argmax(dim=1) + 1 == batch.targets).view(200, 7)
    assert is_right[:, 1:].float().mean() > 0.6
