"""Item sides of SASRec: IDs, text, both; cosine scores; item vectors of another width than the encoder."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding import encode

from slmrec.config import ItemTextConfig, SasRecSettings, SasRecStudent, TextModel
from slmrec.data.batching import pad_histories
from slmrec.models.item_tables import append_items
from slmrec.models.loader import load_model, save_model
from slmrec.models.model import ModelParts
from slmrec.models.sasrec import START_RMS, SasRec, build_sasrec, build_sasrec_student
from slmrec.models.text.item_text import ItemText, TextReader
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch, Histories

NUM_ITEMS, COMPONENTS, WIDTH = 12, 6, 8


def item_text() -> ItemText:
    vectors = torch.randn(NUM_ITEMS + 1, COMPONENTS, generator=torch.Generator().manual_seed(1))
    vectors[0] = 0
    return ItemText(vectors, TextReader(ItemTextConfig(source="any"), torch.zeros(3), torch.zeros(3, COMPONENTS)))


def model(**settings: Any) -> SasRec:
    torch.manual_seed(0)
    values = {"hidden_size": WIDTH, "max_history_items": 5, "dropout": 0.0, "positions": "from_oldest", **settings}
    reads = "item_text" in settings
    section = SasRecSettings.model_validate(values)
    return build_sasrec(section, ModelParts(NUM_ITEMS, item_text() if reads else None)).eval()


def batch(*histories: list[int], every_position: bool = False) -> Batch:
    padded = pad_histories(histories, 5)
    number = int(padded.lengths.sum()) if every_position else len(histories)
    return Batch(padded, torch.arange(number) % NUM_ITEMS + 1, every_position)


def test_the_vectors_of_a_text_model_are_a_function_of_the_text() -> None:
    own = model(item_side="text", item_text="words")
    assert own.item_embeddings is None and own.text is not None
    torch.testing.assert_close(own.item_vectors(), own.text.map(own.text.vectors))
    own.text.vectors[3] = own.text.vectors[5]
    assert own.item_vectors()[3].equal(own.item_vectors()[5])


def test_both_sides_are_added() -> None:
    own = model(item_side="both", item_text="words")
    assert own.item_embeddings is not None and own.text is not None
    torch.testing.assert_close(own.item_vectors(), own.item_embeddings.weight + own.text())


def test_id_dropout_leaves_out_whole_vectors_in_training_alone() -> None:
    own = model(item_side="both", item_text="words", id_dropout=0.5, text_dropout=0.0)
    assert own.item_embeddings is not None and own.text is not None
    with torch.no_grad():
        own.item_embeddings.weight.fill_(100.0)
    evaluated = own.item_vectors() - own.text()
    trained = own.train().item_vectors() - own.text()
    torch.testing.assert_close(evaluated, torch.full_like(evaluated, 100.0))
    assert set(trained.round().unique().tolist()) == {0.0, 100.0}
    assert all(len(row.round().unique()) == 1 for row in trained)


def test_ids_with_a_text_start_from_its_leading_components() -> None:
    own = model(item_side="ids", item_text="words")
    assert own.text is None and own.item_embeddings is not None
    start, text = own.item_embeddings.weight.detach()[1:], item_text().vectors[1:]
    assert start.square().mean().sqrt().item() == pytest.approx(START_RMS, rel=1e-4)
    torch.testing.assert_close(start[:, :COMPONENTS], text * (start[0, 0] / text[0, 0]), rtol=1e-3, atol=1e-4)
    narrow = model(item_side="ids", item_text="words", item_dim=2)
    assert narrow.item_embeddings is not None
    first = narrow.item_embeddings.weight.detach()[1:]
    torch.testing.assert_close(first, text[:, :2] * (first[0, 0] / text[0, 0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("side", "width"), product(["ids", "both"], [None, 20]))
def test_cosine_scores_are_bounded_by_the_temperature(side: str, width: int | None) -> None:
    text = {} if side == "ids" else {"item_text": "words"}
    own = model(item_side=side, scores="cosine", score_temperature=0.5, item_dim=width, **text)
    users, items = encode(own, batch([1, 2], [3])).users, own.item_vectors()[1:]
    torch.testing.assert_close(users.norm(dim=1), torch.full((2,), 2.0))
    torch.testing.assert_close(items.norm(dim=1), torch.ones(NUM_ITEMS))
    assert (users @ items.T).abs().max() <= 2.0 + 1e-5


def test_item_vectors_may_be_wider_than_the_encoder() -> None:
    own = model(item_dim=20)
    assert own.hidden_size == WIDTH and own.item_vectors().shape == (NUM_ITEMS + 1, 20)
    assert encode(own, batch([1, 2], [3])).users.shape == (2, 20)
    users = encode(own, batch(*[[item] for item in range(1, 11)])).users
    assert torch.linalg.matrix_rank(users.detach()) > WIDTH  # unlike a linear map, the MLP keeps more than H dimensions


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("low_pass", [None, {"frequencies": 1}])
def test_one_pass_encodes_all_prefixes(norm_first: bool, low_pass: Any) -> None:
    own = model(norm_first=norm_first, low_pass=low_pass, scores="cosine")
    every = encode(own, batch([1, 2, 3], [4, 5], every_position=True)).users
    prefixes = encode(own, batch([1], [1, 2], [1, 2, 3], [4], [4, 5])).users
    torch.testing.assert_close(every, prefixes, rtol=1e-4, atol=1e-5)


def test_all_weights_get_gradients() -> None:
    own = model(item_side="both", item_text="words", item_dim=20, norm_first=True, low_pass={"frequencies": 1}).train()
    NextItemLoss(own)(batch([1, 2, 3], [4, 5], every_position=True)).total.backward()
    without = [name for name, value in own.named_parameters() if value.grad is None or not value.grad.any()]
    assert not without


@pytest.mark.parametrize("side", ["ids", "text", "both"])
def test_a_folder_keeps_the_item_side_and_new_items_can_be_added(side: str, tmp_path: Path) -> None:
    own = model(item_side=side, item_text="words", item_dim=16, scores="cosine")
    save_model(own, tmp_path)
    opened = load_model(tmp_path)
    histories = batch([1, 2], [3])
    torch.testing.assert_close(encode(opened, histories).users, encode(own, histories).users)
    readers = [text.reader for text in opened.text_maps().values()]
    assert len(readers) == (side != "ids") and all(reader.settings.source == "any" for reader in readers if reader)
    tables = opened.item_tables()
    assert [table.text is not None for table in tables] == {"ids": [False], "text": [True], "both": [False, True]}[side]
    append_items(opened, torch.cat([table.values[4:5] for table in tables], dim=1))
    torch.testing.assert_close(opened.item_vectors()[NUM_ITEMS + 1], own.item_vectors()[4])
    new = Histories(torch.tensor([[NUM_ITEMS + 1]]), torch.tensor([1]))
    torch.testing.assert_close(opened.encode(new).users, encode(own, batch([4])).users)


def test_optional_text_that_is_absent_leaves_ids() -> None:
    settings = SasRecSettings(item_side="both", item_text="words", hidden_size=WIDTH)
    own = build_sasrec(settings, ModelParts(NUM_ITEMS))
    assert own.text is None and own.item_embeddings is not None


def test_a_text_model_is_a_sasrec_with_other_defaults() -> None:
    own = build_sasrec(TextModel(), ModelParts(NUM_ITEMS, item_text()))
    assert own.settings.scores == "cosine" and own.text is not None and own.hidden_size == 128
    assert TextModel(train={"max_steps": 1}).train.learning_rate == TextModel().train.learning_rate == 1e-3


def test_a_student_with_ids_and_text_starts_from_the_projection_too() -> None:
    settings = SasRecStudent(hidden_size=WIDTH, max_history_items=5, init="projected", item_side="both", item_text="w")
    histories = pad_histories([[item, item + 1] for item in range(1, NUM_ITEMS)], 5)
    parts = ModelParts(NUM_ITEMS, item_text(), teacher=model(item_dim=WIDTH), histories=histories)
    own = build_sasrec_student(settings, parts).eval()
    assert own.text is not None and own.item_embeddings is not None and own.text.vectors[1:].any()
    torch.testing.assert_close(own.item_vectors()[1:], own.item_embeddings.weight[1:])
    assert own.item_vectors()[1:].square().mean().sqrt().item() == pytest.approx(START_RMS, rel=1e-4)
    with pytest.raises(ValueError, match="init is projected, which is where ID vectors start, but item_side is text"):
        SasRecStudent(init="projected", item_side="text", item_text="w")
