"""The packed batch against the padded formulation: same outputs and gradients for every supported architecture."""

from typing import Any

import numpy as np
import pytest
import torch
from bench import random_batches, random_model
from decoders import tiny_decoder
from encoding import encode
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slmrec.config import DecoderTraining
from slmrec.errors import ConfigError
from slmrec.inference.freeze import freeze
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.layers import compile_layers
from slmrec.models.packed import attention, flex
from slmrec.models.packed.attention import MAX_PADDING_RATIO, AttentionSettings, KeysValues, length_buckets
from slmrec.models.packed.masks import NewestTokenAttention, PackedAttention
from slmrec.models.packed.rows import PaddedAttention, is_padded_faster
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
    "gemma3_text": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
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
    architecture = SIZES | ARCHITECTURES[model_type] | {"model_type": model_type} | sizes
    return tiny_decoder(
        architecture, NUM_ITEMS, prompt=prompt, positions=positions, max_history_items=MAX_HISTORY, train_items=True
    )


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


@torch.no_grad()
@pytest.mark.parametrize("every_position", [False, True])
def test_a_batch_of_one_and_any_order_give_the_same(every_position: bool) -> None:
    model = build(prompt=(5, 0))
    batch = batch_of([4, 1, 9, 4, 10], every_position)
    whole = encode(model, batch).users
    parts = torch.split(whole, batch.histories.lengths.tolist() if every_position else 1)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        moved = batch._replace(histories=batch.histories.select(order))
        assert relative(encode(model, moved).users, torch.cat([parts[row] for row in order])) <= 1e-6
    for row, part in enumerate(parts):
        alone = batch._replace(histories=batch.histories.select(slice(row, row + 1)))
        assert relative(encode(model, alone).users, part) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_precomputed_prefix_gives_the_same(model_type: str) -> None:
    model, batch = build(model_type), batch_of([3, 5, 1])
    prefix = model.prefill()
    assert prefix is not None and len(prefix) == LAYERS
    found = model.encode(batch.histories, num_blocks=2, prefix=prefix)
    assert_same(found, encode(model, batch, 2))
    assert build(prompt=(0, 2)).prefill() is None


@torch.no_grad()
@pytest.mark.parametrize("every_position", [False, True])
def test_hidden_states_of_layers_end_in_the_user_vectors(every_position: bool) -> None:
    model, batch = build(prompt=(5, 0)), batch_of([3, 5, 1], every_position)
    states = model.hidden_states_of_layers(batch.histories, every_position=every_position, prefix=model.prefill())
    encoded = encode(model, batch, LAYERS)
    assert states.shape == (LAYERS + 1, *encoded.hidden_states[0].shape)
    for own, other in zip(states[1:-1], encoded.hidden_states[:-1], strict=True):
        assert relative(own, other) <= 1e-6
    assert relative(model.early_exit(states[-1]), encoded.users) <= 1e-6


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


def test_adapters_train_through_packed_batches() -> None:
    lora = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.0, "target_modules": ["gate_proj", "q_proj"]}
    model = tiny_decoder(
        SIZES | {"model_type": "llama", "num_hidden_layers": 2}, NUM_ITEMS, lora=lora, max_history_items=MAX_HISTORY
    )
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


def test_a_decoder_is_not_run_without_a_pattern() -> None:
    model = build()
    with pytest.raises(ConfigError, match="without an attention pattern"):
        model.decoder(inputs_embeds=torch.zeros(1, 3, WIDTH))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40).map(sorted))
def test_buckets_hold_every_user_and_pad_little(lengths: list[int]) -> None:
    buckets = length_buckets(lengths)
    assert [length for bucket in buckets for length in bucket.lengths] == lengths
    start = 0
    for bucket in buckets:
        assert bucket.start == start
        start += sum(bucket.lengths)
        assert max(bucket.lengths) * len(bucket.lengths) <= MAX_PADDING_RATIO * sum(bucket.lengths)


@torch.no_grad()
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("num_prefix", [0, 3])
@pytest.mark.parametrize("cached", [False, True])
def test_flex_attention_and_length_buckets_agree(num_prefix: int, cached: bool, softcap: float | None) -> None:
    torch.manual_seed(0)
    packed = PackedAttention(length_buckets([1, 2, 2, 7]), num_prefix, 20, torch.device("cpu"))
    everything = KeysValues(torch.randn(num_prefix + 12, 2, 8), torch.randn(num_prefix + 12, 2, 8))
    query, settings = torch.randn(num_prefix + 12, 4, 8), AttentionSettings(0.3, softcap, 0.0)
    own = everything
    if cached and num_prefix:
        packed.prefix = [KeysValues(*(part[:num_prefix] for part in everything))]
        own, query = KeysValues(*(part[num_prefix:] for part in everything)), query[num_prefix:]
    found = flex.attend(query, packed.all_keys_values(0, own), packed.block_mask, settings)
    assert relative(found, packed.attend(0, query, own, settings)) <= 1e-6
    newest = query[torch.tensor([0, 2, 4, 11]) + len(query) - 12]
    found = flex.attend(newest, packed.all_keys_values(0, own), packed.newest_block_mask, settings)
    assert relative(found, NewestTokenAttention(packed, own).attend(0, newest, own, settings)) <= 1e-6


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_one_kernel_attends_as_plain_products(key_heads: int) -> None:
    torch.manual_seed(0)
    query, settings = torch.randn(3, 5, 4, 8), AttentionSettings(0.3, None, 0.0)
    own = KeysValues(torch.randn(3, 5, key_heads, 8), torch.randn(3, 5, key_heads, 8))
    found = attention._fused_attend(query, own, settings, None)
    assert relative(found, attention.attend(query, own, None, settings)) <= 1e-6


def test_on_a_gpu_all_users_are_one_bucket() -> None:
    lengths = [1, 2, 2, 7, 40]
    assert [bucket.lengths for bucket in length_buckets(lengths, torch.device("cuda"))] == [tuple(lengths)]
    assert len(length_buckets(lengths)) > 1


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
    weights = attention._weights(scores, AttentionSettings(1.0, None, 0.0), torch.bfloat16)
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


def padded(model: DecoderRecommender) -> DecoderRecommender:
    model.engine = "padded"
    return model


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "smollm3"])
def test_padded_batches_give_the_outputs_and_gradients_of_packed_ones(model_type: str, form: dict[str, Any]) -> None:
    models = [build(model_type, form["prompt"], form["positions"]) for _ in range(2)]
    batch = batch_of([3, 10, 1, 7, 7, 2, 6], form["every_position"])
    packed_loss, padded_loss = NextItemLoss(models[0])(batch).total, NextItemLoss(padded(models[1]))(batch).total
    assert padded_loss.item() == pytest.approx(packed_loss.item(), abs=1e-6)
    own, other = encode(models[1], batch, 2), encode(models[0], batch, 2)
    assert_same(own, other)
    ours, theirs = gradients(models[1], own), gradients(models[0], other)
    assert ours.keys() == theirs.keys() and len(ours) > 6 * LAYERS
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-5 * value.norm() + 1e-7, name


def test_a_batch_runs_by_the_engine_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, patterns = build(), batch_of([3, 1]), list[Any]()
    hook = lambda _, __, keywords: patterns.append(keywords["pattern"])  # noqa: E731
    model.decoder.register_forward_pre_hook(hook, with_kwargs=True)
    frozen = freeze(model, fused=False)
    for engine in ("auto", "packed", "padded"):
        model.apply_training_options(DecoderTraining(engine=engine))
        patterns.clear()
        frozen.encode(batch.histories)
        assert [type(pattern) for pattern in patterns] == [PaddedAttention if engine == "padded" else PackedAttention]
    assert "engine" not in model.config.to_dict()


def test_padding_is_faster_for_small_layers_on_a_gpu_alone() -> None:
    """The two models that were measured on an H200 (benchmarks/results/gpu.json), 256 users a batch."""
    small, large = 3_538_944, 202_375_168
    sizes = {"packed_tokens": 3_700, "padded_tokens": 256 * 83}
    assert is_padded_faster("cuda", small, **sizes)
    assert not is_padded_faster("cuda", large, **sizes)
    assert not is_padded_faster("cpu", small, **sizes)
    assert is_padded_faster("cuda", large, packed_tokens=300, padded_tokens=600)
