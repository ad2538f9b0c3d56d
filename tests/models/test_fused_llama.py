"""The lean layers against transformers' own: the same answers, and only where nothing else is in the decoder."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
import torch
from encoding import encode
from slmrec.models.watch import is_untouched
from torch import Tensor

from slmrec import Recommender
from slmrec.models import decoder as decoders
from slmrec.models import fused_llama as lean
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import Vocabulary
from slmrec.models.packed.interface import read_newest
from slmrec.models.titles import Titles
from slmrec.types import Batch, Histories

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
    "a head each": {"num_key_value_heads": 6},
    "one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 16},
    "one layer": {"num_hidden_layers": 1},
    "gelu, other norm": {"hidden_act": "gelu", "rms_norm_eps": 0.3},
    "stretched positions": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}},
}
LORA = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
HISTORIES = {
    "one user": [5],
    "one item": [1],
    "a full history": [MAX_HISTORY],
    "alike": [4, 4, 4],
    "many": [3, 9, 1, 7, 7, 2, 6],
}


def build(prompt: tuple[int, int] = (0, 0), positions: Any = "contiguous", **settings: Any) -> DecoderRecommender:
    torch.manual_seed(0)
    lora, layer_dropout = settings.pop("lora", None), settings.pop("layer_dropout", 0.0)
    backbone = random_decoder(LLAMA | settings)
    prefix, response = (torch.randn(length, LLAMA["hidden_size"]) for length in prompt)
    model = build_decoder(
        Backbone(backbone, prefix, response),
        tuple(range(len(backbone.layers))),
        torch.randn(NUM_ITEMS + 1, 8),
        source="random",
        lora=lora,
        positions=positions,
        max_history_items=MAX_HISTORY,
        item_dropout=0.5,
        train_items=True,
        titles=Titles(torch.randn(NUM_ITEMS + 1, 5), 3, "both"),
        layer_dropout=layer_dropout,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1, 0.3)
    return model.eval()


def batch_of(lengths: list[int], every_position: bool = False) -> Batch:
    items = torch.randint(1, NUM_ITEMS + 1, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor(lengths)
    items[torch.arange(max(lengths)) >= sizes[:, None]] = 0
    return Batch(Histories(items, sizes), torch.ones(sum(lengths), dtype=torch.int64), every_position)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows the lean layers ran on."""
    runs: list[int] = []
    run = lean.LeanLayers.run
    with monkeypatch.context() as patched:
        patched.setattr(lean.LeanLayers, "run", lambda own, *given: runs.append(1) or run(own, *given))
        yield runs


@torch.inference_mode()
def assert_lean_agrees(
    model: DecoderRecommender, answer: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch) as runs:
        expected = answer()
        assert not runs
        model.use_lean_layers()
        found = answer()
        assert runs
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("prompt", [(0, 0), (4, 2)], ids=["no prompt", "prompt"])
@pytest.mark.parametrize("lengths", HISTORIES.values(), ids=HISTORIES)
def test_user_vectors_are_those_of_the_plain_layers(
    shape: dict[str, Any], prompt: tuple[int, int], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(prompt, **shape)
    assert_lean_agrees(model, lambda: encode(model, batch_of(lengths)).users, monkeypatch)


@torch.inference_mode()
def test_a_history_beyond_the_longest_is_read_by_the_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(), batch_of([MAX_HISTORY + 4, 2])
    expected = encode(model, batch).users
    model.use_lean_layers()
    with counted(monkeypatch) as runs:
        assert torch.equal(encode(model, batch).users, expected)
    assert not runs


@pytest.mark.parametrize("lengths", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("every_position", [False, True])
@pytest.mark.parametrize("prompt", [(0, 0), (4, 0)], ids=["no prompt", "prompt"])
def test_right_aligned_positions_and_every_position(
    prompt: tuple[int, int], every_position: bool, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(prompt, positions="right_aligned", layer_dropout=0.5)
    assert_lean_agrees(model, lambda: encode(model, batch_of(lengths, every_position)).users, monkeypatch)


@pytest.mark.parametrize("prompt", [(0, 0), (4, 2)], ids=["no prompt", "prompt"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sessions_go_on_as_they_do_in_the_plain_layers(
    shape: dict[str, Any], prompt: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(prompt, **shape)
    histories = batch_of([MAX_HISTORY] * 3).histories.items.tolist()

    def follow() -> Tensor:
        states, users = [model.new_state() for _ in histories], []
        for some in ([0, 1, 2], [1], [0, 2], [0, 1, 2], [2], [0, 1, 2]):
            for count in (1, 3):
                news = [(2 * histories[row])[count : 2 * count] for row in some]
                users.append(model.append_all([states[row] for row in some], news))
            model.make_room(states)
        return torch.cat(users)

    assert_lean_agrees(model, follow, monkeypatch)


def test_a_session_that_the_plain_layers_began_is_continued() -> None:
    model = build((4, 2))
    plain, mixed = model.new_state(), model.new_state()
    for state in (plain, mixed):
        model.append_all([state], [[3, 4, 5]])
    expected = model.append(plain, 6)
    model.use_lean_layers()
    torch.testing.assert_close(model.append(mixed, 6), expected, rtol=1e-5, atol=1e-5)


OTHERS: dict[str, dict[str, Any]] = {
    "adapters": {"lora": LORA},
    "norms of queries": {"model_type": "qwen3", "head_dim": 8},
    "another architecture": {"model_type": "mistral"},
    "biases": {"attention_bias": True},
    "positions that depend on the call": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0},
        "max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
@torch.no_grad()
def test_other_decoders_run_as_they_are(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(**settings), batch_of([3, 5])
    expected = encode(model, batch).users
    model.use_lean_layers()
    with counted(monkeypatch) as runs:
        assert torch.equal(encode(model, batch).users, expected)
    assert not runs


@torch.no_grad()
def test_large_decoders_and_catalogues_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(), batch_of([3])
    model.use_lean_layers()
    for module in (lean, decoders):
        monkeypatch.setattr(module, "MAX_WEIGHTS", 100)
    encode(model, batch)
    assert model._shortened() is None
    monkeypatch.setattr(lean, "MAX_WEIGHTS", 2**25)
    model.eval()  # looks anew
    short = model._shortened()
    assert short is not None and short.inputs is None


@torch.inference_mode()
def test_weights_made_in_inference_mode_run_as_they_are() -> None:
    model = build()
    model.use_lean_layers()
    assert encode(model, batch_of([3])).users.shape == (1, 11)
    assert model._shortened() is None


class OtherLinear(torch.nn.Linear):
    """As a quantised map, which is of a class of its own."""


def test_only_untouched_inference_is_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(layer_dropout=0.5), batch_of([3, 5])
    model.use_lean_layers()
    mlp = model.decoder.layers[1].mlp
    with counted(monkeypatch) as runs:
        assert encode(model, batch).users.requires_grad and not runs
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            encode(model, batch)
        with torch.no_grad():
            encode(model.train(), batch)
            model.eval().use_lean_layers()
            encode(model, batch, 3)
            model.layer_states(batch.histories)
            assert not runs
            encode(model, batch)
            assert len(runs) == 1
            given: list[int] = []
            hook = mlp.register_forward_hook(lambda _, inputs, __: given.append(inputs[0].shape[1]))
            encode(model, batch)
            assert given == [8] and len(runs) == 1
            hook.remove()
            encode(model, batch)
            assert len(runs) == 2
            kept, mlp.up_proj = mlp.up_proj, OtherLinear(24, 40, bias=False)
            encode(model, batch)
            assert len(runs) == 2
            mlp.up_proj = kept
            encode(model, batch)
            assert len(runs) == 3


@torch.enable_grad()
def step(model: DecoderRecommender) -> None:
    """As in training, but that the model stays in eval mode; the fused kernel raises no version."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    encode(model, batch_of([3, 5])).users.square().sum().backward()
    optimizer.step()


CHANGES: dict[str, Callable[[DecoderRecommender], object]] = {
    "a weight in place": lambda model: model.decoder.layers[1].self_attn.k_proj.weight.mul_(2),
    "the scale of a norm": lambda model: model.decoder.norm.weight.mul_(torch.linspace(1, 2, 24)),
    "an item's vector": lambda model: model.item_embeddings.weight[1:].mul_(2),
    "titles": lambda model: model.titles.vectors.mul_(2),  # type: ignore[union-attr]
    "weights read from a file": lambda model: model.load_state_dict(
        {name: 1.5 * value for name, value in model.state_dict().items()}
    ),
    "weights exchanged": lambda model: model.load_state_dict(
        {name: 1.5 * value for name, value in model.state_dict().items()}, assign=True
    ),
    "another layer": lambda model: model.decoder.layers.__setitem__(0, build().decoder.layers[1]),
    "data exchanged": lambda model: setattr(
        model.decoder.layers[1].self_attn.k_proj.weight, "data", model.decoder.layers[1].self_attn.k_proj.weight * 2
    ),
    "a buffer exchanged": lambda model: setattr(model.titles, "vectors", 2 * model.titles.vectors),  # type: ignore[union-attr]
    "a part's own forward": lambda model: setattr(model.decoder.layers[1].mlp, "forward", lambda states: 0 * states),
    "a step in eval mode": step,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_what_is_kept_follows_the_weights(change: Callable[[DecoderRecommender], object]) -> None:
    model, batch = build(), batch_of([3, 5])
    model.use_lean_layers()
    before = encode(model, batch).users
    change(model)
    found = encode(model, batch).users
    model._is_lean = False
    torch.testing.assert_close(found, encode(model, batch).users, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, rtol=1e-3)


def test_a_recommender_and_its_sessions_are_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = Ensemble.of(build((4, 2)), [build(num_key_value_heads=6, layer_dropout=0.5)], [0.4]), batch_of([5])
    expected = encode(model.eval(), batch).users.detach()
    item_ids = pa.array(range(NUM_ITEMS))
    recommender = Recommender(model, Vocabulary(item_ids, None, pa.array([1] * NUM_ITEMS), None))
    with counted(monkeypatch) as runs:
        found = recommender.encode([(batch.histories.items[0] - 1).tolist()])
        followed = model.append_all([model.new_state()], [batch.histories.items[0].tolist()])
    assert len(runs) == 5  # two members, twice; the prompt once
    for users in (found, followed):
        assert (users - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_training_lets_go_of_what_is_kept() -> None:
    model = build()
    model.use_lean_layers()
    with torch.no_grad():
        encode(model, batch_of([3]))
    assert model._kept_short is not None
    assert model.train()._kept_short is None
    with torch.no_grad():
        encode(model.eval(), batch_of([3]))
    assert model._kept_short is None  # a model that has begun to train answers as it does in training


def test_a_model_is_copied_with_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(), batch_of([3])
    model.use_lean_layers()
    with torch.inference_mode():
        expected = encode(model, batch).users
    copied = copy.deepcopy(model)
    with torch.no_grad(), counted(monkeypatch) as runs:
        model.decoder.norm.weight.mul_(2)
        assert torch.equal(encode(copied, batch).users, expected) and len(runs) == 1
        assert not torch.allclose(encode(model, batch).users, expected)


def test_the_decoders_own_hooks_are_known() -> None:
    model = build(layer_dropout=0.5)
    assert not is_untouched(model, []) and not is_untouched(model, [read_newest])
    assert is_untouched(model, model._idle_hooks)


def test_hooks_of_every_module_and_parts_that_train_are_no_plain_inference() -> None:
    model = build(layer_dropout=0.5)
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not is_untouched(model, model._idle_hooks)
    hook.remove()
    assert is_untouched(model, model._idle_hooks)
    model.layer_dropout.train()
    assert not is_untouched(model, model._idle_hooks)


@torch.inference_mode()
def test_dropout_switched_on_in_an_eval_model_is_drawn() -> None:
    model, batch = build(layer_dropout=0.5), batch_of([5])
    model.use_lean_layers()
    encode(model, batch)
    model.layer_dropout.train()
    assert not torch.equal(encode(model, batch).users, encode(model, batch).users)


@torch.inference_mode()
def test_a_longer_history_may_be_allowed_later() -> None:
    model, batch = build(), batch_of([MAX_HISTORY + 2])
    expected = encode(model, batch).users
    model.use_lean_layers()
    encode(model, batch_of([3]))
    model.config.max_history_items = MAX_HISTORY + 2
    assert (encode(model, batch).users - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_that_a_decoder_is_not_plain_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build(num_hidden_layers=1, lora=LORA), []
    plain = decoders.is_plain
    monkeypatch.setattr(decoders, "is_plain", lambda decoder: asked.append(1) or plain(decoder))
    model.use_lean_layers()
    with torch.inference_mode():
        encode(model, batch_of([3]))
        encode(model, batch_of([4]))
    assert len(asked) == 1


@torch.inference_mode()
def test_an_item_that_is_none_is_no_other_item() -> None:
    model = build()
    model.use_lean_layers()
    with pytest.raises(IndexError):
        model.append(model.new_state(), -1)
