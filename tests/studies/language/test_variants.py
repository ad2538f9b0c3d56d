"""Rows of the study of language: what each control changes, and which controls a recipe has."""

from typing import Any

import pytest

from slmrec.config.load import load_config
from slmrec.errors import ConfigError
from slmrec.studies.language.questions import questions
from slmrec.studies.language.variants import Row, Rows, differences, language_rows

NO_DECODER = [
    "item_text={words: {}}",
    "pretrain={sasrec: {kind: sasrec}, text: {kind: text, adaptor_size: 32}}",
    "finetune={backbone: null, ensemble: [sasrec, text]}",
    "distill={student: {kind: sasrec}, weights: {ce: 0, cosine: 0, norm: 0, multiple: 0, kl: 1}}",
]
DECODER = [
    "item_text={llm: {source: smollm2-135m, layer: 20}, words: {}}",
    "pretrain={sasrec: {kind: sasrec}, text: {kind: text, item_text: words}}",
    "finetune={ensemble: [sasrec, text], item_text: llm, item_text_width: 8, num_layers: 2}",
    "distill={student: {num_layers: 1}, num_blocks: 1, weights: {multiple: 0}}",
]


@pytest.fixture(autouse=True)
def architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the architecture of the backbone, which may not be installed."""
    sizes = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2}
    monkeypatch.setattr("slmrec.studies.language.variants.read_architecture", lambda *_: sizes)


def rows_of(recipe: list[str], *overrides: str) -> Rows:
    return language_rows(load_config(None, [*recipe, *overrides]))


def found(rows: Rows, name: str) -> Row:
    row = rows.find(name)
    assert row is not None
    return row


def changed(rows: Rows, name: str) -> dict[str, Any]:
    return differences(found(rows, "full").config, found(rows, name).config)


def test_controls_of_a_recipe_without_decoder() -> None:
    rows = rows_of(NO_DECODER)
    assert [row.name for row in rows.rows] == ["full", "shuffled", "no_text", "id_model", "cross_entropy"]
    assert rows.aliases == {"text_words": "full", "words": "full"}
    assert changed(rows, "shuffled") == {"item_text.words.shuffled": True}
    without = found(rows, "no_text").config
    assert list(without.pretrain) == ["sasrec"] and without.finetune.ensemble == ("sasrec",) and not without.item_text
    second = found(rows, "id_model").config
    assert second.pretrain["text"].kind == "text" and second.pretrain["text"].item_side == "ids"  # type: ignore[attr-defined]
    assert second.finetune.ensemble == ("sasrec", "text") and not second.item_text
    assert [row.name for row in rows.rows if row.is_cold] == ["full", "shuffled", "no_text"]


def test_the_student_by_cross_entropy_differs_in_its_weights_alone() -> None:
    rows = rows_of(NO_DECODER, "distill.kl_temperature=2")
    own, recipe = found(rows, "cross_entropy").config, found(rows, "full").config
    assert {name: weight for name, weight in own.distill.weights.model_dump().items() if weight} == {"ce": 1}
    assert own.distill.student == recipe.distill.student and own.distill.train == recipe.distill.train
    assert own.finetune == recipe.finetune and own.pretrain == recipe.pretrain
    weights = "distill.weights={ce: 1, cosine: 0, norm: 0, multiple: 0, kl: 0}"
    assert rows_of(NO_DECODER, weights).find("cross_entropy") is None


def test_controls_of_a_decoder_and_of_several_texts() -> None:
    rows = rows_of(DECODER)
    names = ["full", "text_words", "text_llm", "random_llm", "shuffled", "no_text", "id_model"]
    assert [row.name for row in rows.rows] == [*names, "no_decoder", "random_decoder", "cross_entropy"]
    assert rows.aliases == {"words": "text_words"}
    only = found(rows, "text_llm").config
    assert list(only.item_text) == ["llm"] and only.finetune.item_text == "llm"
    assert only.pretrain["text"].item_text == "llm"  # type: ignore[attr-defined]
    assert found(rows, "random_llm").config.item_text["llm"].random_weights
    assert found(rows, "random_llm").config.item_text["llm"].layer == 20
    alone = found(rows, "no_decoder").config
    assert alone.finetune.backbone is None and alone.finetune.ensemble == ("sasrec", "text")
    assert list(alone.item_text) == ["words"]
    random = found(rows, "random_decoder").config.finetune
    assert (random.backbone, random.lora, random.num_layers, random.item_text_width) == ("random", None, 2, 8)
    without = found(rows, "no_text").config
    assert without.finetune.item_text is None and without.finetune.backbone == "smollm2-135m" and not without.item_text


def test_further_texts_are_compared() -> None:
    rows = rows_of(NO_DECODER, "ablate.item_text={mini: {source: all-minilm-l6-v2}}")
    assert {"text_mini", "random_mini"} <= {row.name for row in rows.rows}
    titles = {question.title: question for question in questions(rows)}
    assert titles["pretraining of mini"].sides() == (("random_mini", "teacher"), ("text_mini", "teacher"))
    assert titles["mini against words"].sides() == (("full", "teacher"), ("text_mini", "teacher"))


def test_a_text_that_is_read_beside_ids_leaves_an_id_model() -> None:
    recipe = [
        *NO_DECODER[:1],
        "pretrain={sasrec: {item_text: words, item_side: both, id_dropout: 0.2}}",
        *NO_DECODER[3:],
    ]
    rows = rows_of([*recipe, "finetune={backbone: null, ensemble: [sasrec]}"])
    without = found(rows, "no_text").config.pretrain["sasrec"]
    assert (without.item_text, without.item_side) == (None, "ids")  # type: ignore[attr-defined]
    assert rows.aliases["id_model"] == "no_text"  # the same control, which is trained and asked about once
    assert "text against a second ID model" not in {question.title for question in questions(rows)}


def test_a_teacher_of_one_text_model_has_no_row_without_text() -> None:
    rows = rows_of([NO_DECODER[0], "pretrain={text: {kind: text}}", "finetune={backbone: null, ensemble: [text]}", NO_DECODER[3]])  # fmt: skip # noqa: E501
    assert rows.find("no_text") is None and rows.find("id_model") is not None
    assert "text" not in {question.title for question in questions(rows)}


def test_questions_of_a_decoder() -> None:
    asked = [question.title for question in questions(rows_of(DECODER))]
    assert asked == [
        "text", "text against a second ID model", "the items' own texts", "pretraining of llm", "llm against words",
        "the decoder", "pretraining of the decoder", "distillation", "student against teacher",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["pretrain={sasrec: {}}"], "no model of the teacher reads item text, so there is nothing to compare"),
        ([*NO_DECODER, "distill.teacher=elsewhere"], "distill.teacher is 'elsewhere'; the study compares teachers"),
        ([*NO_DECODER, "ablate.item_text={words: {}}"], "ablate.item_text has 'words', which item_text has too"),
        ([*NO_DECODER, "ablate.item_text={a/b: {}}"], "item_text has 'a/b': names are folders"),
    ],
)
def test_recipes_without_language_are_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        language_rows(load_config(None, overrides))
