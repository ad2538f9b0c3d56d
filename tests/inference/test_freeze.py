"""Frozen models answer as the models they are made from, on the fast path and on the plain one."""

import copy
from typing import Any

import pytest
import torch
from artefacts import MODELS
from decoders import tiny_decoder
from torch import Tensor, nn

from slmrec.evaluation.rank import eval_mode
from slmrec.inference.freeze import FrozenEnsemble, freeze
from slmrec.inference.frozen_model import FrozenModel
from slmrec.inference.incremental import FrozenDecoder
from slmrec.models import fused_llama
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.types import Encoded, Histories

MAX_HISTORY, NUM_ITEMS = 9, 30
LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 11,
    "initializer_range": 0.3,
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped keys": {},
    "a key head for each head": {"num_key_value_heads": 6},
    "one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 16},
    "one layer": {"num_hidden_layers": 1},
    "gelu, other norm": {"hidden_act": "gelu", "rms_norm_eps": 0.3},
    "scaled positions": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}},
}
LENGTHS = {
    "one user": [5],
    "one item": [1],
    "a full history": [MAX_HISTORY],
    "equal lengths": [4, 4, 4],
    "many": [3, 9, 1, 7, 7, 2, 6],
}


def build(prompt: tuple[int, int] = (0, 0), *, shape: dict[str, Any] | None = None, **settings: Any) -> Any:
    model = tiny_decoder(
        LLAMA | (shape or {}),
        NUM_ITEMS,
        prompt=prompt,
        text_components=5,
        item_text_width=3,
        max_history_items=MAX_HISTORY,
        item_dropout=0.5,
        **settings,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1, 0.3)
    return model


def histories_of(lengths: list[int]) -> Histories:
    items = torch.randint(1, NUM_ITEMS + 1, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor(lengths)
    items[torch.arange(max(lengths)) >= sizes[:, None]] = 0
    return Histories(items, sizes)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("prompt", [(0, 0), (4, 2)], ids=["no prompt", "prompt"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_fused_layers_give_the_user_vectors_of_the_model(
    shape: dict[str, Any], prompt: tuple[int, int], lengths: list[int]
) -> None:
    model, histories = build(prompt, shape=shape), histories_of(lengths)
    frozen = freeze(model)
    assert isinstance(frozen, FrozenDecoder) and frozen.is_fused
    assert_close(frozen.encode(histories).users, model.encode(histories).users)


@torch.no_grad()
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("every_position", [False, True])
@pytest.mark.parametrize("prompt", [(0, 0), (4, 0)], ids=["no prompt", "prompt"])
def test_right_aligned_positions_and_every_position(
    prompt: tuple[int, int], every_position: bool, lengths: list[int]
) -> None:
    model, histories = build(prompt, positions="right_aligned", layer_dropout=0.5), histories_of(lengths)
    found = freeze(model).encode(histories, every_position=every_position).users
    assert_close(found, model.encode(histories, every_position=every_position).users)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [(0, 0), (4, 2)], ids=["no prompt", "prompt"])
def test_hidden_states_and_long_histories_use_the_layers_of_the_model(prompt: tuple[int, int]) -> None:
    model = build(prompt)
    frozen, histories = freeze(model), histories_of([3, 5])
    found, expected = frozen.encode(histories, num_blocks=3), model.encode(histories, num_blocks=3)
    for own, other in zip((*found.hidden_states, found.users), (*expected.hidden_states, expected.users), strict=True):
        assert_close(own, other)
    longer = histories_of([MAX_HISTORY + 4, 2])
    assert_close(frozen.encode(longer).users, model.encode(longer).users)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_without_fused_layers_results_are_those_of_the_model(name: str) -> None:
    model, histories = MODELS[name](), histories_of([6, 1, 3])
    frozen = freeze(model, fused=False)
    torch.testing.assert_close(frozen.encode(histories).users, model.encode(histories).users, rtol=1e-5, atol=1e-6)
    assert torch.equal(frozen.item_vectors(), model.item_vectors())
    assert (frozen.num_items, frozen.max_history_items) == (model.num_items, model.max_history_items)


@torch.no_grad()
def test_without_a_prompt_unfused_results_are_bit_identical() -> None:
    model, histories = build(), histories_of([6, 1, 3])
    assert torch.equal(freeze(model, fused=False).encode(histories).users, model.encode(histories).users)


def test_adapters_are_not_fused() -> None:
    frozen = freeze(build(lora={"r": 2}))
    assert isinstance(frozen, FrozenDecoder) and not frozen.is_fused


@torch.no_grad()
def test_inputs_of_large_catalogues_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, histories = build(), histories_of([3])
    expected = freeze(model).encode(histories).users
    monkeypatch.setattr(fused_llama, "can_fuse", lambda decoder: True)
    monkeypatch.setattr(fused_llama, "MAX_WEIGHTS", 100)
    frozen = freeze(model)
    assert isinstance(frozen, FrozenDecoder) and frozen._item_inputs is None
    assert_close(frozen.encode(histories).users, expected)


@torch.no_grad()
def test_a_frozen_model_is_a_snapshot() -> None:
    model, histories = build((4, 2)), histories_of([3])
    frozen = freeze(model)
    before, items = frozen.encode(histories).users, frozen.item_vectors().clone()
    model.decoder.layers[1].self_attn.k_proj.weight.mul_(2)
    model.item_embeddings.weight.mul_(2)
    assert torch.equal(frozen.encode(histories).users, before) and torch.equal(frozen.item_vectors(), items)
    assert not torch.allclose(freeze(model).encode(histories).users, before, rtol=1e-3)


def test_a_model_keeps_nothing_of_freezing() -> None:
    model = build((4, 2))
    names, state = set(vars(model)), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        freeze(model).encode(histories_of([3]))
    assert set(vars(model)) == names
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train().encode(histories_of([3])).users.sum().backward()


def test_modes_can_be_restored_after_freezing() -> None:
    model = build(layer_dropout=0.5).train()
    with eval_mode(model):
        frozen = freeze(model, fused=False)
        expected = frozen.encode(histories_of([3])).users
        assert torch.equal(frozen.encode(histories_of([3])).users, expected)
    assert all(part.training for part in model.modules())


def test_gradients_are_not_recorded() -> None:
    assert not freeze(build()).encode(histories_of([3])).users.requires_grad


@torch.no_grad()
def test_an_ensemble_freezes_its_members() -> None:
    members: dict[str, Any] = {"text": build((4, 2)), "decoder": build(shape={"num_key_value_heads": 6})}
    model, histories = Ensemble.of(members, {"text": 0.4, "decoder": 0.6}).eval(), histories_of([5, 2])
    frozen = freeze(model)
    assert isinstance(frozen, FrozenEnsemble) and frozen.is_incremental
    assert all(isinstance(member, FrozenDecoder) and member.is_fused for member in frozen.members.values())
    assert_close(frozen.encode(histories).users, model.encode(histories).users)
    blocks = frozen.encode(histories, num_blocks=3).hidden_states
    for own, other in zip(blocks, model.encode(histories, num_blocks=3).hidden_states, strict=True):
        assert_close(own, other)


class GruEncoder(nn.Module):
    """A user's own module: a GRU over item vectors."""

    num_items, max_history_items = NUM_ITEMS, MAX_HISTORY

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(NUM_ITEMS + 1, 8, padding_idx=0)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.dropout = nn.Dropout(0.5)

    def item_vectors(self) -> Tensor:
        return self.items.weight

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        states = self.dropout(self.gru(self.items(histories.items))[0])
        return Encoded(states[torch.arange(len(states)), histories.lengths - 1])


def test_a_module_that_the_package_does_not_know_is_frozen_too() -> None:
    torch.manual_seed(0)
    model, histories = GruEncoder(), histories_of([4, 2])
    frozen = freeze(model)
    assert type(frozen) is FrozenModel and not model.training and not frozen.is_incremental
    states = [frozen.new_state(), frozen.new_state()]
    items = [row[:length] for row, length in zip(histories.items.tolist(), histories.lengths.tolist(), strict=True)]
    frozen.append(states, [row[:1] for row in items])
    appended = frozen.append(states, [row[1:] for row in items]).users
    torch.testing.assert_close(appended, frozen.encode(histories).users)


def test_an_own_class_can_have_its_own_frozen_form() -> None:
    class Doubled(GruEncoder):
        pass

    class FrozenDoubled(FrozenModel):
        is_incremental = True

    @freeze.register
    def _(model: Doubled, *, fused: bool = True) -> FrozenModel:
        return FrozenDoubled(model, fused=fused)

    assert isinstance(freeze(Doubled()), FrozenDoubled) and type(freeze(GruEncoder())) is FrozenModel


@torch.inference_mode()
def test_an_item_out_of_range_is_refused() -> None:
    frozen = freeze(build())
    with pytest.raises(IndexError):
        frozen.append([frozen.new_state()], [[-1]])


def test_the_prompt_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build((4, 2)), []
    prefill = DecoderRecommender.prefill
    monkeypatch.setattr(DecoderRecommender, "prefill", lambda own: calls.append(1) or prefill(own))
    frozen = freeze(model)
    frozen.encode(histories_of([3]))
    frozen.append([frozen.new_state()], [[1, 2]])
    assert len(calls) == 1
