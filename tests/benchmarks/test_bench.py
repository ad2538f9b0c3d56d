"""The benchmark's own arithmetic, and its output on a tiny model."""

import json
from pathlib import Path

import bench
import numpy as np
import pytest
import torch

from slmrec.data.dataset import Dataset

TINY = bench.LLAMA | {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
PROMISED = (
    "train_speedup",
    "infer_speedup",
    "train_speedup_sorted",
    "infer_speedup_sorted",
    "train_memory_ratio",
    "train_share_of_matmul",
    "headline_train_speedup",
    "headline_infer_speedup",
    "distill_epoch_ratio",
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def smollm2_model(num_layers: int | None) -> bench.DecoderRecommender:
        depth = num_layers or 6
        decoder = bench.random_decoder(TINY | {"num_hidden_layers": depth})
        return bench._model(decoder, depth, bench.LORA, bench.MAX_HISTORY)

    monkeypatch.setattr(bench, "LLAMA", TINY)
    monkeypatch.setattr(bench, "NUM_ITEMS", 50)
    monkeypatch.setattr(bench, "PROMPT", (5, 2))
    monkeypatch.setattr(bench, "smollm2_model", smollm2_model)


@pytest.mark.usefixtures("tiny")
def test_the_output_is_flat_and_holds_what_was_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = bench.lengths_of(None)[:100]
    monkeypatch.setattr(bench, "lengths_of", lambda data: few)
    output = tmp_path / "sub" / "bench.json"
    bench.bench(output, None, rounds=1)
    content = json.loads(output.read_text(encoding="utf-8"))
    assert all(content[name] > 0 for name in PROMISED)
    assert not any(isinstance(value, dict | list) for value in content.values())
    assert content["torch"] == torch.__version__ and content["threads"] == torch.get_num_threads()
    for kind in ("train", "infer"):
        factors = [content[f"headline_{kind}_{name}"] for name in ("fewer_layers", "less_waste", "precision")]
        assert content[f"headline_{kind}_speedup"] == pytest.approx(np.prod(factors))
    assert content["train_speedup"] == pytest.approx(content["train_padded_s"] / content["train_packed_s"])
    assert f"written to {output}" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_the_sorted_baseline_pads_to_the_longest_history_of_a_batch_and_agrees() -> None:
    model = bench.random_model().eval()
    batch = bench.random_batches(np.array([3, 5]), 4)[0]
    narrow, widths = bench.NarrowEncoder(model, bench.MAX_HISTORY), []
    model.decoder.layers[0].register_forward_pre_hook(
        lambda _, arguments, options: widths.append((arguments or (options["hidden_states"],))[0].shape[1]),
        with_kwargs=True,
    )
    with torch.no_grad():
        users = narrow.encode(batch.histories).users
        assert widths == [sum(bench.PROMPT) + int(batch.histories.lengths.max())]
        torch.testing.assert_close(users, model.encode(batch.histories).users, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tiny")
def test_the_products_of_a_step_are_all_counted() -> None:
    model = bench.random_model()
    batch = bench.random_batches(np.full(8, 5), 4)[0]
    products = bench.products_of(model, batch)
    tokens, users, width = bench.PROMPT[0] + 4 * (5 + bench.PROMPT[1]), 4, 16
    up = [product for product in products if product == (tokens, width, 24)]
    assert len(up) == 3 * 3  # gate and up, and the gradient of down's input, in all layers but the last
    assert products.count((users, width, 24)) == 3  # in the last, for the newest tokens alone
    assert products.count((24, tokens, width)) == 2 * 3  # gradients of their weights
    assert (users, bench.ITEM_DIM, 50) in products and (50, users, bench.ITEM_DIM) in products


def test_lengths_come_from_the_data_or_are_like_beautys(tiny_dataset: Dataset, shop_file: Path, tmp_path: Path) -> None:
    from slmrec import prepare

    (tmp_path / "data").mkdir()
    prepare(shop_file, tmp_path / "data")
    lengths = bench.lengths_of(tmp_path / "data")
    assert lengths.tolist() == tiny_dataset.held_out("test").clipped_lengths(bench.MAX_HISTORY).tolist()
    usual = bench.lengths_of(None)
    assert usual.min() == 4 and usual.max() == bench.MAX_HISTORY and 7.5 < usual.mean() < 8


def test_sides_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    times = iter([9.0, 9.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    monkeypatch.setattr(bench, "timed", lambda step: step() or next(times))
    steps = {name: lambda name=name: order.append(name) for name in ("a", "b")}  # type: ignore[misc]
    assert bench.paired(steps, 3) == {"a": 2.0, "b": 20.0}
    assert order == ["a", "b"] * 4
