"""The packed row against the padded formulation: same outputs and gradients for every supported architecture."""

from typing import Any

import numpy as np
import pytest
import torch
from bench import random_batches, random_model
from encoding import encode
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slmrec.errors import ConfigError
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.layers import compile_layers
from slmrec.models.packed import attention as segments
from slmrec.models.packed import flex
from slmrec.models.packed.attention import PADDED_SHARE, KeysValues, ScoreRule, groups_of
from slmrec.models.packed.masks import NewestQueries, PackedRow
from slmrec.models.padded import PaddedEncoder
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch, Encoded, Histories

WIDTH, LAYERS, MAX_HISTORY, NUM_ITEMS = 32, 4, 10, 30
SIZES = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "smollm3": {},
    "olmo2": {},
    "granite": {},
}
FORMS = {
    "prompted": {"prompt": (5, 3), "positions": "contiguous", "every_position": False},
    "right aligned": {"prompt": (5, 3), "positions": "right_aligned", "every_position": False},
    "every position": {"prompt": (4, 0), "positions": "contiguous", "every_position": True},
    "every position, right aligned, no prompt": {
        "prompt": (0, 0),
        "positions": "right_aligned",
        "every_position": True,
    },
    "response alone": {"prompt": (0, 2), "positions": "contiguous", "every_position": False},
}


def build(
    model_type: str = "llama", prompt: tuple[int, int] = (5, 3), positions: Any = "contiguous", **sizes: Any
) -> DecoderRecommender:
    torch.manual_seed(0)
    decoder = random_decoder(SIZES | ARCHITECTURES[model_type] | {"model_type": model_type} | sizes)
    prefix, response = (0.3 * torch.randn(length, WIDTH) for length in prompt)
    vectors = torch.randn(NUM_ITEMS + 1, 8)
    return build_decoder(
        Backbone(decoder, prefix, response),
        tuple(range(LAYERS)),
        vectors,
        source="random",
        lora=None,
        positions=positions,
        max_history_items=MAX_HISTORY,
        item_dropout=0.0,
        train_items=True,
    ).eval()


def batch_of(lengths: list[int], every_position: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(1, NUM_ITEMS + 1, (len(lengths), max(lengths)), generator=generator)
    sizes = torch.tensor(lengths)
    items[torch.arange(max(lengths)) >= sizes[:, None]] = 0
    num_targets = int(sizes.sum()) if every_position else len(lengths)
    return Batch(Histories(items, sizes), torch.ones(num_targets, dtype=torch.int64), every_position)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def assert_same(found: Encoded, expected: Encoded) -> None:
    for own, other in zip((found.users, *found.hidden_states), (expected.users, *expected.hidden_states), strict=True):
        assert own.shape == other.shape
        assert relative(own, other) <= 1e-5


def gradients(model: DecoderRecommender, encoded: Encoded) -> dict[str, Tensor]:
    model.zero_grad()
    (encoded.users.square().sum() + sum(state.sin().sum() for state in encoded.hidden_states)).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_outputs_and_gradients_are_those_of_the_padded_path(model_type: str, form: dict[str, Any]) -> None:
    model = build(model_type, form["prompt"], form["positions"])
    batch = batch_of([3, 10, 1, 7, 7, 2, 6], form["every_position"])
    own, other = encode(model, batch, 2), encode(PaddedEncoder(model, MAX_HISTORY), batch, 2)
    assert_same(own, other)
    ours, theirs = gradients(model, own), gradients(model, other)
    assert ours.keys() == theirs.keys() and len(ours) > 6 * LAYERS
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-4 * value.norm(), name
    with torch.no_grad():
        assert_same(encode(model, batch, 2), other)  # the prefix kept from before


@torch.no_grad()
@pytest.mark.parametrize("every_position", [False, True])
def test_a_batch_of_one_and_any_order_give_the_same(every_position: bool) -> None:
    model = build(prompt=(5, 0))
    batch = batch_of([4, 1, 9, 4, 10], every_position)
    whole = encode(model, batch).users
    parts = torch.split(whole, batch.histories.lengths.tolist() if every_position else 1)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        moved = batch._replace(histories=Histories(*(part[order] for part in batch.histories)))
        assert relative(encode(model, moved).users, torch.cat([parts[row] for row in order])) <= 1e-6
    for row, part in enumerate(parts):
        alone = batch._replace(histories=Histories(*(part[row : row + 1] for part in batch.histories)))
        assert relative(encode(model, alone).users, part) <= 1e-6


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_appended_event_gives_what_the_whole_history_gives(model_type: str) -> None:
    model, state = build(model_type), None
    items = batch_of([MAX_HISTORY + 4]).histories.items[0]
    state = model.new_state()
    for seen in range(1, len(items) + 1):
        appended = model.append(state, int(items[seen - 1]))
        newest = items[max(0, seen - MAX_HISTORY) : seen]
        with torch.no_grad():
            whole = model.encode(Histories(newest[None], torch.tensor([len(newest)]))).users[0]
        assert relative(appended, whole) <= 1e-5
        assert state.items == newest.tolist()


@pytest.mark.parametrize("prompt", [(5, 3), (0, 0)])
def test_events_of_many_users_are_appended_together(prompt: tuple[int, int]) -> None:
    model = build(prompt=prompt)
    histories = batch_of([MAX_HISTORY + 4] * 3).histories.items.tolist()
    states = [model.new_state() for _ in histories]
    seen = [0] * len(histories)
    for counts in ([1, 2, 5], [3, 1, 1], [1, 4, 1], [MAX_HISTORY + 2, 1, 6]):  # the last ones no longer fit
        stops = [min(start + count, MAX_HISTORY + 4) for start, count in zip(seen, counts, strict=True)]
        news = [history[start:stop] for history, start, stop in zip(histories, seen, stops, strict=True)]
        users = model.append_all(states, news)
        seen = stops
        for user, history, stop, state in zip(users, histories, stops, states, strict=True):
            newest = torch.tensor(history[:stop][-MAX_HISTORY:])
            with torch.no_grad():
                whole = model.encode(Histories(newest[None], torch.tensor([len(newest)]))).users[0]
            assert relative(user, whole) <= 1e-5
            assert state.items == newest.tolist()
            assert state.past is not None and len(state.past) == len(newest)


@pytest.mark.parametrize("prompt", [(5, 3), (0, 0)])
def test_room_made_between_events_leaves_one_item_to_read(prompt: tuple[int, int]) -> None:
    model, read = build(prompt=prompt), []
    model.input_proj.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    full, other = batch_of([MAX_HISTORY + 3, 2]).histories.items.tolist()
    states = [model.new_state(), model.new_state()]
    model.append_all(states, [full[:MAX_HISTORY], other[:2]])
    for seen in range(MAX_HISTORY, MAX_HISTORY + 3):
        model.make_room(states)
        assert (states[0].items, states[1].items) == (full[seen + 1 - MAX_HISTORY : seen], other[:2])
        read.clear()
        appended = model.append(states[0], full[seen])
        assert read == [1]
        newest = torch.tensor([full[seen + 1 - MAX_HISTORY : seen + 1]])
        with torch.no_grad():
            whole = model.encode(Histories(newest, torch.tensor([MAX_HISTORY]))).users[0]
        assert relative(appended, whole) <= 1e-5


def test_appending_needs_contiguous_positions_and_eval_mode() -> None:
    model = build(positions="right_aligned")
    with pytest.raises(ConfigError, match="append needs positions: contiguous, this model has right_aligned"):
        model.append(model.new_state(), 1)
    model = build().train()
    with pytest.raises(ValueError, match="call eval"):
        model.append(model.new_state(), 1)


@torch.no_grad()
def test_the_prefix_is_computed_once_and_anew_after_a_change() -> None:
    model, batch = build(), batch_of([3, 5])
    before = encode(model, batch).users
    kept = model._kept_prefix
    encode(model, batch)
    assert kept is not None and model._kept_prefix is kept
    model.decoder.layers[0].self_attn.k_proj.weight.mul_(2)
    after = encode(model, batch).users
    assert relative(after, before) > 1e-4
    assert relative(after, encode(PaddedEncoder(model, MAX_HISTORY), batch).users) <= 1e-5


def test_the_last_layer_runs_for_the_newest_tokens_alone() -> None:
    model, batch, seen = build(), batch_of([3, 5, 4]), []
    for layer in (model.decoder.layers[-2], model.decoder.layers[-1]):
        layer.mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    encode(model, batch)
    assert seen == [5 + 3 + 5 + 4 + 3 * 3, 3]  # prefix, items, responses; then one token a user


@pytest.mark.parametrize("every_position", [False, True])
def test_gradient_checkpointing_changes_no_gradient(every_position: bool) -> None:
    model, batch = build(prompt=(5, 0)), batch_of([3, 10, 1], every_position)
    plain = gradients(model.train(), encode(model, batch, 2))
    model.decoder.gradient_checkpointing_enable()
    entered: list[int] = []
    model.decoder.layers[0].input_layernorm.register_forward_hook(lambda *arguments: entered.append(1))
    ours = gradients(model, encode(model, batch, 2))
    assert len(entered) == 2  # forward, and again on the way back
    for name, value in plain.items():
        assert relative(ours[name], value) <= 1e-6, name


def test_adapters_train_through_the_packed_row() -> None:
    decoder = random_decoder(SIZES | {"model_type": "llama"})
    lora = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.0, "target_modules": ["gate_proj", "q_proj"]}
    model = build_decoder(
        Backbone(decoder, torch.zeros(0, WIDTH), torch.zeros(0, WIDTH)),
        (0, 1),
        torch.randn(NUM_ITEMS + 1, 8),
        source="random",
        lora=lora,
        positions="contiguous",
        max_history_items=MAX_HISTORY,
        item_dropout=0.0,
        train_items=False,
    )
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    batch = batch_of([3, 10, 1])
    own, other = encode(model, batch, 2), encode(PaddedEncoder(model, MAX_HISTORY), batch, 2)
    assert_same(own, other)
    ours, theirs = gradients(model, own), gradients(model, other)
    assert any("lora_A" in name for name in ours)
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize(
    ("model_type", "sizes", "message"),
    [
        ("mistral", {"sliding_window": 17}, "sliding window is 17 tokens but prompt and history have up to 18"),
        ("gemma3_text", {"sliding_window": 8}, "sliding window is 8 tokens"),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux is not supported"),
    ],
)
def test_attention_that_cannot_be_honoured_is_refused_by_name(
    model_type: str, sizes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, model_type, ARCHITECTURES.get(model_type, {}))
    with pytest.raises(ConfigError, match=message):
        encode(build(model_type, **sizes), batch_of([1]))


@pytest.mark.parametrize(
    ("model_type", "sizes", "message"),
    [
        ("bloom", {}, "backbone BloomModel: its attention cannot be replaced"),
        ("lfm2", {"layer_types": ["full_attention", "conv"] * 2}, "backbone Lfm2Model: it has conv layers"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "it has bidirectional layers"),
    ],
)
def test_other_kinds_of_decoder_are_refused(
    model_type: str, sizes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, model_type, ARCHITECTURES.get(model_type, {}))
    with pytest.raises(ConfigError, match=message):
        build(model_type, **sizes)


def test_a_window_that_is_long_enough_is_taken() -> None:
    model, batch = build("mistral", sliding_window=18), batch_of([10, 2])
    assert_same(encode(model, batch), encode(PaddedEncoder(model, MAX_HISTORY), batch))


def test_a_decoder_is_not_run_without_a_plan() -> None:
    model = build()
    with pytest.raises(ConfigError, match="without a plan"):
        model.decoder(inputs_embeds=torch.zeros(1, 3, WIDTH))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40).map(sorted))
def test_groups_hold_every_user_and_pad_little(lengths: list[int]) -> None:
    groups = groups_of(lengths)
    assert [length for group in groups for length in group.lengths] == lengths
    start = 0
    for group in groups:
        assert group.start == start
        start += sum(group.lengths)
        assert max(group.lengths) * len(group.lengths) <= PADDED_SHARE * sum(group.lengths)


@torch.no_grad()
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("num_prefix", [0, 3])
@pytest.mark.parametrize("cached", [False, True])
def test_flex_attention_and_groups_agree(num_prefix: int, cached: bool, softcap: float | None) -> None:
    torch.manual_seed(0)
    row = PackedRow(groups_of([1, 2, 2, 7]), num_prefix, 20, torch.device("cpu"))
    everything = KeysValues(torch.randn(num_prefix + 12, 2, 8), torch.randn(num_prefix + 12, 2, 8))
    query, rule = torch.randn(num_prefix + 12, 4, 8), ScoreRule(0.3, softcap, 0.0)
    own = everything
    if cached and num_prefix:
        row.cached_prefix = [KeysValues(*(part[:num_prefix] for part in everything))]
        own, query = KeysValues(*(part[num_prefix:] for part in everything)), query[num_prefix:]
    found = flex.attend(query, row.answers(0, own), row.mask, rule)
    assert relative(found, row.attend(0, query, own, rule)) <= 1e-6
    newest = query[torch.tensor([0, 2, 4, 11]) + len(query) - 12]
    found = flex.attend(newest, row.answers(0, own), row.newest_mask, rule)
    assert relative(found, NewestQueries(row, own).attend(0, newest, own, rule)) <= 1e-6


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_one_kernel_attends_as_the_products_of_a_group(key_heads: int) -> None:
    torch.manual_seed(0)
    query, rule = torch.randn(3, 5, 4, 8), ScoreRule(0.3, None, 0.0)
    own = KeysValues(torch.randn(3, 5, key_heads, 8), torch.randn(3, 5, key_heads, 8))
    found = segments._fused(query, own, rule, None)
    assert relative(found, segments.attend_group(query, own, None, rule)) <= 1e-6


def test_on_a_gpu_all_users_are_one_group() -> None:
    lengths = [1, 2, 2, 7, 40]
    assert [group.lengths for group in groups_of(lengths, torch.device("cuda"))] == [tuple(lengths)]
    assert len(groups_of(lengths)) > 1


@pytest.mark.heavy
def test_compiled_layers_give_the_same_numbers() -> None:
    model = random_model()
    batch = next(iter(random_batches(np.array([3, 5, 2]), 4)))
    expected = encode(model, batch).users
    compile_layers(model.decoder)
    compiled = model.decoder.layers[0].mlp._compiled_call_impl
    assert compiled is not None
    torch.testing.assert_close(encode(model, batch).users, expected, rtol=1e-4, atol=1e-5)
    assert "_orig_mod" not in "".join(model.state_dict())


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ConfigError, match=r"cannot compile here \(no compiler\); install a C\+\+ compiler"):
        compile_layers(random_model().decoder)


def test_norms_are_exact_under_autocast_however_large_their_input() -> None:
    """A mean of squares summed in bfloat16 would stop growing after 256 like terms, and be wrong by a factor."""
    torch.manual_seed(0)
    model = random_model()
    states = (3e4 * (1 + torch.rand(7, model.hidden_size))).to(torch.bfloat16)
    for norm in (model.decoder.norm, torch.nn.LayerNorm(model.hidden_size)):
        exact = norm.double()(states.double())
        with torch.autocast("cpu", torch.bfloat16):
            found = norm.float()(states.float())
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = norm(states)  # what it is given and gives is rounded, what it computes is not
        torch.testing.assert_close(rounded.double(), exact, rtol=2**-7, atol=2**-7)


def test_the_softmax_of_attention_is_exact_in_bfloat16() -> None:
    """Of 4,096 equal scores each weight is 1/4096; sums in bfloat16 would stop at 256."""
    scores = torch.full((1, 4096), 3e4, dtype=torch.bfloat16)
    weights = segments._weights(scores, ScoreRule(1.0, None, 0.0), torch.bfloat16)
    assert torch.equal(weights, torch.full_like(weights, 1 / 4096))


def test_a_large_input_trains_under_autocast_as_without() -> None:
    model = random_model(num_layers=2)
    with torch.no_grad():
        model.item_embeddings.weight.mul_(1e3)
    [batch] = random_batches(np.array([3, 9, 20]), 8)[:1]
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = NextItemLoss(model)(batch).total
        loss.backward()
        assert loss.dtype == torch.float32 and torch.isfinite(loss)
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    assert torch.isfinite(gradients[1]).all()
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
