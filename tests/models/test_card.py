"""Cards: what was measured, how, and in the form that hubs read."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import decoder, sasrec
from huggingface_hub import ModelCard, ModelCardData

from slmrec import Recommender
from slmrec.config import ItemTextConfig, LoraSettings
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.build import student_from
from slmrec.models.card import About, Measured, card
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import save_recommender
from slmrec.models.model import Model
from slmrec.models.text.item_text import TextReader

SETTINGS = {
    "split": "leave_one_out, test",
    "eval_mode": "full",
    "exclude_history": True,
    "num_negatives": None,
    "ties": "broken at random",
    "seed": 7,
}
COMMAND = "slmrec evaluate --config c.yaml --output RUN"
FULL = Measured("full_history_excluded", SETTINGS, {"hit@10": 0.25, "ndcg@10": 0.125}, 1234, 40, COMMAND)
SAMPLED = Measured("sampled_20", SETTINGS | {"num_negatives": 20}, {"hit@10": 0.5}, 1234, 40, COMMAND)
ABOUT = About("Mine", {"ndcg@10": 0.0625}, {"sources": [{"file": "shop.txt"}]}, (FULL, SAMPLED))


def test_a_card_tells_protocol_split_seed_and_command() -> None:
    text = " ".join(card(sasrec(), ABOUT, "i00", "items.parquet").split())
    assert "Protocol `full_history_excluded`: split `leave_one_out, test`, 1,234 users, ranked against all 40" in text
    assert f"history excluded, ties broken at random, seed 7; measured by `{COMMAND}`" in text
    assert "Protocol `sampled_20`: split `leave_one_out, test`, 1,234 users, ranked against 20 sampled" in text
    order = [text.index(f"| {row} |") for row in ("hit@10 | 0.2500", "hit@10 | 0.5000", "ndcg@10 | 0.0625")]
    assert order == sorted(order)


def test_the_hub_reads_the_metrics() -> None:
    data = ModelCard(card(sasrec(), ABOUT, "i00", "items.parquet")).data
    assert (data.model_name, data.library_name) == ("Mine", "slmrec")
    found = [(r.dataset_config, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results or []]
    assert found == [
        ("full_history_excluded", "test", "hit@10", 0.25),
        ("full_history_excluded", "test", "ndcg@10", 0.125),
        ("sampled_20", "test", "hit@10", 0.5),
        (None, "validation", "ndcg@10", 0.0625),
    ]
    first = (data.eval_results or [])[0]
    assert (first.task_type, first.dataset_name) == ("sequential-recommendation", "shop.txt")
    assert "&id" not in card(sasrec(), ABOUT, "i00", "items.parquet")  # what is alike is written out, for people
    assert first.dataset_args == {"protocol": "full_history_excluded", **SETTINGS}


def test_nothing_measured_is_nothing_told() -> None:
    text = card(sasrec(), About(), "i00", "items.parquet")
    assert "model-index" not in text and "| metric |" not in text and "# SLMRec\n" in text


def test_results_of_another_form_are_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    save_recommender(sasrec(), tiny_dataset, tmp_path, "tiny", {})
    about = tmp_path / "about.json"
    about.write_text(about.read_text().replace('"measured": []', '"measured": [{"protocol": "full"}]'))
    with pytest.raises(
        CheckpointError, match=r"about\.json: .*measured\.0\.settings: Field required.*copy the folder again"
    ):
        Recommender.from_pretrained(tmp_path)


def opened(dataset: Dataset, folder: Path) -> Recommender:
    save_recommender(sasrec(), dataset, folder, "tiny", {"ndcg@10": 0.5})
    return Recommender.from_pretrained(folder)


def test_licence_and_languages_are_those_of_the_publisher(tiny_dataset: Dataset, tmp_path: Path) -> None:
    recommender = opened(tiny_dataset, tmp_path / "trained")
    first = ModelCard.load(tmp_path / "trained" / "README.md")
    assert first.data.license is None and first.data.language is None
    assert "No licence has been chosen for this model" in first.text
    recommender.save_pretrained(tmp_path / "mine", license="cc-by-nc-4.0", language=["en", "deu"])
    again = Recommender.from_pretrained(tmp_path / "mine")
    again.save_pretrained(tmp_path / "copy")  # what was chosen stays
    again.save_pretrained(tmp_path / "changed", language="multilingual")
    for name, language in (("mine", ["en", "deu"]), ("copy", ["en", "deu"]), ("changed", ["multilingual"])):
        card_ = ModelCard.load(tmp_path / name / "README.md")
        assert (card_.data.license, card_.data.language) == ("cc-by-nc-4.0", language)
        assert "The licence of this model is `cc-by-nc-4.0`." in card_.text
    documented = set(inspect.signature(ModelCardData).parameters) | {"model-index"}
    front = (tmp_path / "mine" / "README.md").read_text().split("---\n")[1]
    assert {line.partition(":")[0] for line in front.splitlines() if line[0].isalpha()} <= documented


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"license": "MIT License"}, "license is 'MIT License', expected an identifier such as mit, apache-2.0"),
        ({"license": ""}, "license is '', expected"),
        ({"language": "English"}, "language has 'English', expected ISO 639 codes such as en or deu"),
        ({"language": ["en", 1]}, "language has 1, expected ISO 639 codes"),
    ],
)
def test_what_hubs_refuse_is_refused_before_anything_is_written(
    tiny_dataset: Dataset, tmp_path: Path, choice: dict[str, Any], message: str
) -> None:
    recommender = opened(tiny_dataset, tmp_path / "trained")
    with pytest.raises(ConfigError, match=message):
        recommender.save_pretrained(tmp_path / "mine", **choice)
    with pytest.raises(ConfigError, match=message):
        recommender.push_to_hub("me/mine", **choice)
    assert not (tmp_path / "mine").exists()


def made_from(backbone: str | None, lora: bool = False) -> Model:
    model = decoder(lora=lora)
    model.config.backbone = backbone
    return model


def reading(source: str, random_weights: bool = False) -> Model:
    model = decoder(titles=True)
    model.config.backbone = None
    settings = ItemTextConfig(source=source, random_weights=random_weights)
    model.text_maps()["titles"].reader = TextReader(settings, torch.zeros(7), torch.zeros(7, 5))
    return model


def student_of(backbone: str, lora: LoraSettings | None = None) -> Model:
    model = made_from(backbone)
    assert isinstance(model, DecoderRecommender)
    return student_from(model, (0,), item_dropout=0.0, train_items=False, lora=lora)


GEMMA = "google/gemma-3-270m"
SMOLLM2, MINILM = "HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("model", "base_model", "text"),
    [
        (made_from("smollm2-135m"), SMOLLM2, f"layers of [{SMOLLM2}](https://huggingface.co/{SMOLLM2}), licence `apac"),
        (made_from("smollm2-135m", lora=True), SMOLLM2, f"adapters on top of [{SMOLLM2}]"),
        (made_from("me/large"), "me/large", "layers of [me/large](https://huggingface.co/me/large), under the licence"),
        (made_from("/home/me/large"), None, "layers of `large`, under the licence of that model."),
        (made_from("random"), None, None),
        (student_of("random"), None, None),
        (student_of("smollm2-135m", lora=LoraSettings()), SMOLLM2, f"It holds layers of [{SMOLLM2}]"),
        (made_from("gemma-3-270m", lora=True), GEMMA, "licence `gemma`. Gemma is provided under and subject to the"),
        (
            student_of("gemma-3-270m"),
            GEMMA,
            f"layers of [{GEMMA}](https://huggingface.co/{GEMMA}), licence `gemma`. Gem",
        ),
        (reading("all-minilm-l6-v2"), None, f"computed by [{MINILM}](https://huggingface.co/{MINILM}), licence `apac"),
        (reading("all-minilm-l6-v2", random_weights=True), None, None),
    ],
)
def test_pretrained_models_and_their_licences_are_named(model: Model, base_model: str | None, text: str | None) -> None:
    made = ModelCard(card(model, About(), "i00", "items.parquet"))
    assert made.data.base_model == base_model
    assert text in made.text if text else made.text.rstrip().endswith("`push_to_hub`.")
