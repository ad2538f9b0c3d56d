"""The low-pass filter of SASRec: a Fourier transform of the padded window, and nothing that depends on the batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoding import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModel

from slmrec.config import Config
from slmrec.data.batching import collate
from slmrec.data.dataset import Dataset, Samples
from slmrec.errors import CheckpointError
from slmrec.models.blocks import LowPass, low_pass_matrix
from slmrec.models.decoder import DecoderRecommenderConfig
from slmrec.models.loader import load_model, save_model
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.pipeline import pretrain
from slmrec.pipeline.stage import Task
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch, Histories

WINDOW, WIDTH, FREQUENCIES = 6, 8, 2


def model(low_pass: bool = True, dropout: float = 0.0, positions: str = "from_newest", causal: bool = True) -> SasRec:
    torch.manual_seed(0)
    filtered = {"weight": 0.7, "frequencies": FREQUENCIES, "causal": causal} if low_pass else None
    sizes = {"hidden_size": WIDTH, "max_history_items": WINDOW}
    config = SasRecConfig(num_items=20, dropout=dropout, low_pass=filtered, positions=positions, **sizes)
    return SasRec(config).eval()


def batch(*histories: list[int], width: int | None = None) -> Batch:
    lengths = torch.tensor([len(history) for history in histories])
    items = torch.zeros(len(histories), width or int(lengths.max()), dtype=torch.long)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    return Batch(Histories(items, lengths), torch.ones(len(histories), dtype=torch.long), False)


def fourier(states: Tensor, beta: Tensor) -> Tensor:
    """low + beta^2 * high of (n, D) states, on the left-padded window, by the transform itself."""
    window = torch.cat([torch.zeros(WINDOW - len(states), states.shape[1]), states])
    spectrum = torch.fft.rfft(window, dim=0)
    spectrum[FREQUENCIES:] = 0
    low = torch.fft.irfft(spectrum, WINDOW, dim=0)
    return (low + beta**2 * (window - low))[WINDOW - len(states) :]


def causal_fourier(states: Tensor, beta: Tensor) -> Tensor:
    """Return the newest output of the filter for each prefix of (n, D) states."""
    return torch.stack([fourier(states[: length + 1], beta)[-1] for length in range(len(states))])


def test_a_constant_passes_and_an_alternation_does_not() -> None:
    matrix = low_pass_matrix(4, 2)
    np.testing.assert_allclose(matrix @ [3.0, 3, 3, 3], [3, 3, 3, 3], atol=1e-6)
    np.testing.assert_allclose(matrix @ [1.0, -1, 1, -1], [0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(matrix @ [4.0, 0, 0, 0], [3, 1, -1, 1], atol=1e-6)  # 1 + 2 cos(pi d / 2)


@settings(deadline=None, max_examples=50)
@given(window=st.integers(1, 40), data=st.data())
def test_the_filter_is_a_projection_that_knows_distances_alone(window: int, data: st.DataObject) -> None:
    matrix = low_pass_matrix(window, data.draw(st.integers(1, window // 2 + 1)))
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-5)
    distances = np.abs(np.subtract.outer(np.arange(window), np.arange(window)))
    np.testing.assert_allclose(matrix, matrix[0][distances], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, WINDOW), min_size=1, max_size=4), more=st.integers(0, 2), causal=st.booleans())
@torch.no_grad()
def test_the_filter_is_the_transform_of_the_padded_window(lengths: list[int], more: int, causal: bool) -> None:
    layer = model(causal=causal).layers[0].low_pass
    assert isinstance(layer, LowPass)
    columns = torch.arange(min(WINDOW, max(lengths) + more))
    states = torch.randn(len(lengths), len(columns), WIDTH)  # of padding too: it must not matter
    ends = torch.tensor(lengths)
    is_item = columns < ends[:, None]
    every = layer(states, states, columns[None], is_item)
    newest = layer(states[torch.arange(len(ends)), ends - 1, None], states, ends[:, None] - 1, is_item)
    for row, length in enumerate(lengths):
        own = states[row, :length]
        expected = layer.norm(own + (causal_fourier if causal else fourier)(own, layer.beta))
        torch.testing.assert_close(every[row, :length], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(newest[row, 0], expected[-1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_model_is_that_of_the_naive_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(layer: LowPass, queries: Tensor, x: Tensor, columns: Tensor, is_item: Tensor) -> Tensor:
        assert len(x) == 1
        return layer.norm(x + causal_fourier(x[0], layer.beta))[:, -queries.shape[1] :]

    own = model()
    for history in ([3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]):
        found = encode(own, batch(history)).users
        with monkeypatch.context() as patch:
            patch.setattr(LowPass, "forward", naive)
            torch.testing.assert_close(found, encode(own, batch(history)).users, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_weight_mixes_filter_and_attention() -> None:
    """Of weights 0 and 1 the block's middle is attention or filter alone; 0.7 lies at 0.7 of the way."""
    block, middles = model().layers[-1], []
    block.output_norm = block.feed_forward = torch.nn.Identity()  # the block then gives twice its middle
    states, columns, is_item = torch.randn(1, 4, WIDTH), torch.arange(4), torch.ones(1, 4, dtype=torch.bool)
    for weight in (0.0, 1.0, 0.7):
        block.filter_weight = weight
        middles.append(block(states, states, None, columns[None], is_item) / 2)
    torch.testing.assert_close(middles[1], block.low_pass(states, states, columns[None], is_item))
    torch.testing.assert_close(middles[2], 0.3 * middles[0] + 0.7 * middles[1])


@torch.no_grad()
def test_a_sample_does_not_see_what_comes_after_it() -> None:
    one, other = np.array([1, 2, 3, 4, 5, 6, 7]), np.array([1, 2, 3, 9, 9, 9, 9])
    vectors = []
    for flat in (one, other):
        starts, ends = np.array([0, 0]), np.array([3, 6])
        samples = Samples.of(flat, starts, ends, np.array([0, 0]))
        vectors.append(encode(model(), collate(samples, np.array([0, 1]), WINDOW)).users)
    torch.testing.assert_close(vectors[0][0], vectors[1][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(vectors[0][1], vectors[1][1], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("low_pass", "causal"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("positions", ["from_newest", "from_oldest", "relative"])
def test_every_position_is_the_prefix_that_ends_there(
    positions: str, low_pass: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = model(low_pass, positions=positions, causal=causal)
    every = encode(own, batch([1, 2, 3, 4], [5, 6])._replace(every_position=True)).users
    prefixes = encode(own, batch([1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [5], [5, 6])).users
    torch.testing.assert_close(every, prefixes, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("slmrec.models.sasrec.MAX_PREFIXES", 4)
    in_pieces = encode(own, batch([1, 2, 3, 4], [5, 6])._replace(every_position=True)).users
    torch.testing.assert_close(in_pieces, every, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_relative_positions_distinguish_orders_and_distances() -> None:
    own = model(low_pass=False, positions="relative")
    assert not any("position_embeddings" in name for name in own.state_dict())
    for layer in own.layers:
        layer.distance_bias.weight.normal_()
    one, other = (encode(own, batch(history)).users for history in ([1, 2, 3], [2, 1, 3]))
    assert not torch.allclose(one, other, atol=1e-4)


def test_one_pass_with_absolute_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="with positions: from_newest an item has another position in each"):
        Config.model_validate({"pretrain": {"sasrec": {"supervision": "every_position"}}})
    both_ways = {"supervision": "every_position", "positions": "relative", "low_pass": {"causal": False}}
    with pytest.raises(ValueError, match=r"low_pass\.causal: false filters an item with those after it"):
        Config.model_validate({"pretrain": {"sasrec": both_ways}})
    relative = {"supervision": "every_position", "positions": "relative"}
    assert Config.model_validate({"pretrain": {"sasrec": relative}}).pretrain["sasrec"].supervision == "every_position"


@pytest.mark.parametrize("every_position", [False, True])
def test_training_groups_histories_by_length_without_effect(every_position: bool) -> None:
    """Without dropout, a model in training returns what it returns in evaluation, in the same order."""
    histories = batch([3, 1, 2], [7], [4, 4, 5, 6, 1], [9, 8], [2], [1, 2, 3, 4, 5, 6], [5, 6, 7]).histories
    own = model(positions="from_oldest", causal=True)
    evaluated = own.encode(histories, every_position=every_position).users
    trained = own.train().encode(histories, every_position=every_position).users
    torch.testing.assert_close(trained, evaluated, rtol=1e-5, atol=1e-6)
    gradients = []
    for users in (trained, evaluated):
        own.zero_grad()
        (users * torch.arange(users.numel()).reshape(users.shape)).sum().backward()
        gradients.append(own.item_embeddings.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def test_gradients_reach_each_beta_and_padding_gets_none() -> None:
    own = model()
    NextItemLoss(own)(batch([1, 2, 3], [4])).total.backward()
    for layer in own.layers:
        assert layer.low_pass.beta.grad.abs().min() > 0
        assert layer.low_pass.norm.weight.grad.abs().sum() > 0
    assert not own.item_embeddings.weight.grad[0].any()


def test_a_filter_adds_its_own_weights_alone_and_betas_start_apart() -> None:
    plain, filtered = model(low_pass=False).state_dict(), model().state_dict()
    added = {name.rpartition("low_pass.")[2] for name in filtered.keys() - plain.keys()}
    assert plain.keys() <= filtered.keys() and added == {"beta", "norm.weight", "norm.bias"}
    assert len(filtered["layers.0.low_pass.beta"].unique()) == WIDTH


@torch.no_grad()
def test_a_folder_keeps_the_filter(tmp_path: Path) -> None:
    histories = batch([1, 2, 3], [4])
    for name, own in (("filtered", model()), ("plain", model(low_pass=False))):
        folder = tmp_path / name
        folder.mkdir()
        save_model(own, folder)
        torch.testing.assert_close(encode(load_model(folder), histories).users, encode(own, histories).users)
        automatic = AutoModel.from_pretrained(folder).eval()
        torch.testing.assert_close(encode(automatic, histories).users, encode(own, histories).users)
    assert load_model(tmp_path / "filtered").config.low_pass == {
        "weight": 0.7,
        "frequencies": FREQUENCIES,
        "causal": True,
    }


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    save_model(model(low_pass=False), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert config["hidden_size"] == WIDTH and config["num_items"] == 20
    path.write_text(json.dumps(config | {"max_history_items": -1}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: makes no model .*max_history_items.*greater than"):
        load_model(tmp_path)


def test_pretrain_builds_the_filter_that_is_asked_for(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dataset, "load", lambda folder: tiny_dataset)
    section = {"hidden_size": 8, "low_pass": {"frequencies": 3}, "train": {"max_steps": 1, "num_train_epochs": 1}}
    folder = tmp_path / "pretrain" / "sasrec"
    folder.mkdir(parents=True)
    config = Config.model_validate({"pretrain": {"sasrec": section}})
    pretrain.build(Task(config, tmp_path, folder, model="sasrec"))
    trained = load_model(folder)
    assert trained.config.low_pass == {"weight": 0.7, "frequencies": 3, "causal": True}
    assert all("low_pass" not in name or value.isfinite().all() for name, value in trained.state_dict().items())


def test_the_default_window_is_that_of_the_decoder() -> None:
    model = SasRec(SasRecConfig(num_items=7, hidden_size=8))
    assert model.max_history_items == DecoderRecommenderConfig().max_history_items == 50
