"""Properties of every sequence encoder: a user vector depends on the history of the user only."""

from pathlib import Path

import artefacts
import pytest
import torch
from decoders import tiny_decoder
from encoding import encode
from transformers import AutoModel

from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.backbone import random_decoder
from slmrec.models.build import layer_influence, student_from
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.layers import add_branch_dropout, choose_layers, evenly_spaced
from slmrec.models.loader import load_model, save_model
from slmrec.models.model import Model
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.models.weights import merged_state_dict
from slmrec.types import Batch, Histories

LLAMA = artefacts.LLAMA | {"num_hidden_layers": 4}


def sasrec(low_pass: dict[str, float] | None = None) -> SasRec:
    torch.manual_seed(0)
    return SasRec(SasRecConfig(num_items=20, hidden_size=8, max_history_items=6, low_pass=low_pass)).eval()


def decoder(
    positions: str = "contiguous", prompt: bool = True, lora: bool = False, titles: str | None = None
) -> DecoderRecommender:
    return tiny_decoder(
        LLAMA,
        20,
        prompt=(3, 2) if prompt else (0, 0),
        text_components=5 if titles else None,
        item_text_width=3,
        item_text_side=titles or "both",
        lora=artefacts.LORA if lora else None,
        positions=positions,
        max_history_items=6,
    )


def ensemble(lora: bool = False) -> Ensemble:
    models = {
        "decoder": decoder(prompt=False, lora=lora, titles="both"),
        "sasrec": sasrec(),
        "other": decoder(prompt=False),
    }
    return Ensemble.of(models, {"decoder": 0.5, "sasrec": 0.3, "other": 0.2}).eval()


MODELS = {
    "sasrec": sasrec,
    "filtered sasrec": lambda: sasrec({"weight": 0.7, "frequencies": 2}),
    "contiguous": decoder,
    "right_aligned": lambda: decoder("right_aligned"),
    "no prompt": lambda: decoder(prompt=False),
    "lora": lambda: decoder(lora=True),
    "adapted student": artefacts.adapted_student,
    "titles": lambda: decoder(titles="both", lora=True),
    "titles read": lambda: decoder(titles="input"),
    "titles scored": lambda: decoder(titles="score"),
    "ensemble": ensemble,
    "ensemble of an adapted decoder": lambda: ensemble(lora=True),
}


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]()


def batch(*histories: list[int], every_position: bool = False, width: int | None = None) -> Batch:
    lengths = torch.tensor([len(history) for history in histories])
    items = torch.zeros(len(histories), width or int(lengths.max()), dtype=torch.long)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    num = int(lengths.sum()) if every_position else len(histories)
    return Batch(Histories(items, lengths), torch.ones(num, dtype=torch.long), every_position)


@torch.no_grad()
def test_a_users_vector_does_not_depend_on_the_batch(model: Model) -> None:
    histories = [[1, 2, 3, 4, 5], [6], [7, 8]]
    together = encode(model, batch(*histories)).users
    alone = torch.cat([encode(model, batch(history)).users for history in histories])
    padded = encode(model, batch(*histories, width=6)).users
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, padded, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_the_history_matters(model: Model) -> None:
    one, other = (encode(model, batch(history)).users for history in ([1, 2, 3], [2, 1, 3]))
    assert not torch.allclose(one, other, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("build", [sasrec, lambda: decoder(prompt=False)], ids=["sasrec", "decoder"])
def test_a_position_does_not_see_later_items(build: object) -> None:
    model = build()  # type: ignore[operator]
    one = encode(model, batch([1, 2, 3, 4], every_position=True)).users
    other = encode(model, batch([1, 2, 9, 8], every_position=True)).users
    torch.testing.assert_close(one[:2], other[:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one[2:], other[2:], atol=1e-4)


@torch.no_grad()
def test_every_position_ends_with_the_newest(model: Model) -> None:
    if isinstance(model, DecoderRecommender) and len(model.response):
        pytest.skip("reads the user vector after the response, not at the items")
    every = encode(model, batch([1, 2, 3], [4, 5], every_position=True)).users
    newest = encode(model, batch([1, 2, 3], [4, 5])).users
    torch.testing.assert_close(every[[2, 4]], newest, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "build", [lambda: decoder(prompt=False), ensemble, sasrec], ids=["decoder", "ensemble", "sasrec"]
)
def test_every_position_is_each_prefix(build: object) -> None:
    model = build()  # type: ignore[operator]
    every = encode(model, batch([1, 2, 3], every_position=True)).users
    prefixes = encode(model, batch([1], [1, 2], [1, 2, 3])).users
    torch.testing.assert_close(every, prefixes, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_position_schemes_differ_and_agree_for_a_full_history() -> None:
    contiguous, right = decoder(), decoder("right_aligned")
    full, short = [1, 2, 3, 4, 5, 6], [1, 2]
    torch.testing.assert_close(encode(contiguous, batch(full)).users, encode(right, batch(full)).users)
    assert not torch.allclose(encode(contiguous, batch(short)).users, encode(right, batch(short)).users, atol=1e-5)


@torch.no_grad()
def test_saved_and_loaded_is_the_same(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    random_decoder(LLAMA).save_pretrained("tiny")  # the backbone that the folder of the adapters names
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    rounding = 1e-6 if model.has_adapters else 0  # the layers of a backbone lie at another address than those in memory
    torch.testing.assert_close(
        encode(again, batch([1, 2, 3])).users, encode(model, batch([1, 2, 3])).users, rtol=rounding, atol=rounding
    )
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pkl"))


@pytest.mark.parametrize("build", [lambda: decoder(titles="both"), ensemble], ids=["titles", "ensemble"])
def test_item_vectors_are_saved_and_auto_model_opens_them(build: object, tmp_path: Path) -> None:
    model = build()  # type: ignore[operator]
    save_model(model, tmp_path)
    for again in (load_model(tmp_path), AutoModel.from_pretrained(tmp_path).eval()):
        torch.testing.assert_close(again.item_vectors(), model.item_vectors(), rtol=0, atol=0)


@torch.no_grad()
def test_an_ensemble_reads_every_position_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, histories = ensemble(), batch([1, 2, 3], [4], [5, 6], every_position=True)
    at_once = encode(model, histories).users
    monkeypatch.setattr("slmrec.models.sasrec.MAX_PREFIXES", 4)
    torch.testing.assert_close(encode(model, histories).users, at_once)


@torch.no_grad()
def test_an_ensembles_scores_are_the_weighted_sum() -> None:
    model, histories = ensemble(), batch([1, 2, 3], [4])
    scores = encode(model, histories).users @ model.item_vectors().T
    parts = [encode(part, histories).users @ part.item_vectors().T for part in model.models.values()]
    torch.testing.assert_close(scores, 0.5 * parts[0] + 0.3 * parts[1] + 0.2 * parts[2])
    blocks = encode(model, histories, num_blocks=2).hidden_states
    for own, llms in zip(blocks, encode(model.models["decoder"], histories, num_blocks=2).hidden_states, strict=True):
        torch.testing.assert_close(own, llms)


def test_an_ensembles_other_members_drop_nothing_out() -> None:
    model = ensemble().train()
    modes = {name: part.training for name, part in model.models.items()}
    assert modes == {"decoder": True, "sasrec": False, "other": False}


@torch.no_grad()
@pytest.mark.parametrize("side", ["input", "score", "both"])
def test_where_titles_count(side: str) -> None:
    model, histories = decoder(titles=side), batch([1, 2, 3])
    users, items = encode(model, histories).users, model.item_vectors().clone()
    assert items.shape == (21, 8 if side == "input" else 11)
    model.titles.vectors[1:4] += 1
    assert torch.allclose(users, encode(model, histories).users) == (side == "score")
    assert torch.equal(items, model.item_vectors()) == (side == "input")
    assert torch.equal(items[:, :8], model.item_vectors()[:, :8])


def test_the_map_of_titles_learns_through_both_sides() -> None:
    for side in ("input", "score", "both"):
        model = decoder(titles=side).train()
        users = encode(model, batch([1, 2, 3])).users
        (users @ model.item_vectors().T).square().sum().backward()
        assert model.titles.map.weight.grad.abs().sum() > 0, side
        assert "titles.map.weight" in dict(model.named_parameters())
        assert not any(name == "titles.vectors" for name, _ in model.named_parameters())


@torch.no_grad()
def test_students_take_over_the_titles() -> None:
    teacher = decoder(titles="both")
    student = student_from(teacher, (0, 1), item_dropout=0.0, train_items=False)
    torch.testing.assert_close(student.item_vectors(), teacher.item_vectors(), rtol=0, atol=0)


@torch.no_grad()
def test_the_influence_of_a_layer_is_how_far_it_turns_the_states() -> None:
    model, histories = decoder(), batch([1, 2, 3], [4, 5])
    for weight in (model.decoder.layers[2].self_attn.o_proj.weight, model.decoder.layers[2].mlp.down_proj.weight):
        weight.zero_()  # what is left of this layer is the residual
    influence = layer_influence(model, histories.histories)
    assert influence.shape == (4,)
    assert influence[2].abs() < 1e-6 and (influence[[0, 1, 3]] > 1e-3).all()


def test_dropout_in_the_layers_is_for_training_alone(tmp_path: Path) -> None:
    student = student_from(decoder(), (0, 1), item_dropout=0.0, layer_dropout=0.5, train_items=False)
    plain = student_from(decoder(), (0, 1), item_dropout=0.0, train_items=False).eval()
    histories = batch([1, 2, 3])
    with torch.no_grad():
        one, other = encode(student.train(), histories).users, encode(student, histories).users
        assert not torch.allclose(one, other, atol=1e-3)
        torch.testing.assert_close(encode(student.eval(), histories).users, encode(plain, histories).users)
    save_model(student, tmp_path)
    assert load_model(tmp_path).layer_dropout.p == 0.5


def test_dropout_needs_layers_that_are_known() -> None:
    strange = random_decoder(LLAMA)
    del strange.layers[0].mlp
    with pytest.raises(ConfigError, match="layer_dropout: the MLPs of LlamaModel are not found"):
        add_branch_dropout(strange, torch.nn.Dropout(0.1))


def test_an_adapted_model_saves_no_weight_of_its_backbone(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = decoder(lora=True)
    save_model(model, tmp_path)
    heads, adapters = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "adapter_model.safetensors")
    assert not any(name.startswith("decoder.") for name in heads)
    assert adapters and all("lora_" in name for name in adapters)
    assert (tmp_path / "adapter_config.json").is_file()


def test_auto_model_opens_a_standalone_folder(tmp_path: Path) -> None:
    model = decoder()
    save_model(model, tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(encode(again, batch([1, 2])).users, encode(model, batch([1, 2])).users)


def test_missing_and_mismatched_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(sasrec(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in weights.items() if name != "norm.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_model(tmp_path)


@torch.no_grad()
def test_a_student_of_all_layers_is_its_teacher_with_adapters_merged() -> None:
    teacher = decoder(lora=True)
    student = student_from(teacher, (0, 1, 2, 3), item_dropout=0.0, train_items=False).eval()
    assert student.config.lora is None and not any("lora_" in name for name in student.state_dict())
    histories = batch([1, 2, 3], [4])
    torch.testing.assert_close(encode(student, histories).users, encode(teacher, histories).users, rtol=1e-4, atol=1e-5)


def test_a_student_keeps_the_chosen_layers_in_order() -> None:
    teacher = decoder()
    student = student_from(teacher, (3, 1), item_dropout=0.0, train_items=True)
    state, taught = student.state_dict(), merged_state_dict(teacher)
    name = "self_attn.q_proj.weight"
    assert student.num_layers == 2
    assert torch.equal(state[f"decoder.layers.0.{name}"], taught[f"decoder.layers.3.{name}"])
    assert torch.equal(state[f"decoder.layers.1.{name}"], taught[f"decoder.layers.1.{name}"])
    assert student.item_embeddings.weight.requires_grad


def test_trainable_parameters_by_name() -> None:
    adapted = {name for name, value in decoder(lora=True).named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in adapted if "lora_" not in name} == {"input_proj", "score"}
    full = {name for name, value in decoder().named_parameters() if value.requires_grad}
    assert "decoder.layers.0.mlp.up_proj.weight" in full and "item_embeddings.weight" not in full


def test_blocks_must_divide_the_depth() -> None:
    with pytest.raises(ConfigError, match=r"num_blocks is 3.*depth of 4"):
        encode(decoder(), batch([1]), num_blocks=3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, 4, 1, None), (0, 1, 2, 3)),
        ((8, 4, 2, None), (0, 2, 4, 6)),
        ((7, 4, 2, None), (0, 2, 4, 6)),
        ((8, 1, 1, (5, 2)), (5, 2)),
    ],
)
def test_choice_of_layers(arguments: tuple[int, int, int, tuple[int, ...] | None], expected: tuple[int, ...]) -> None:
    assert choose_layers(*arguments, "finetune") == expected


@pytest.mark.parametrize(
    ("depth", "num", "expected"),
    [(8, 4, (0, 2, 5, 7)), (4, 2, (0, 3)), (8, 1, (0,)), (8, 2, (0, 7)), (4, 4, (0, 1, 2, 3))],
)
def test_evenly_spaced_layers(depth: int, num: int, expected: tuple[int, ...]) -> None:
    assert evenly_spaced(depth, num) == expected


def test_a_depth_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"distill.num_layers is 40 but there are 32 layers; choose 1-32"):
        choose_layers(32, 40, 1, None, "distill")
    with pytest.raises(ConfigError, match=r"layers is \[0, 9\] but there are 8 layers; choose from 0-7"):
        choose_layers(8, 1, 1, (0, 9), "finetune")
    with pytest.raises(ConfigError, match="choose 1-4"):
        choose_layers(8, 5, 2, None, "finetune")


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="no_such_model"):
        random_decoder({"model_type": "no_such_model"})
