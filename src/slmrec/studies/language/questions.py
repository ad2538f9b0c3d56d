"""Questions of the study of language: pairs of rows, and the answers in words."""

from collections.abc import Iterator
from typing import NamedTuple

from slmrec.studies.language.variants import FULL, Rows


class Question(NamedTuple):
    """A row, its control, and the beginnings of the three possible answers."""

    title: str
    row: str
    control: str
    gain: str
    loss: str
    none: str
    with_it: str
    """Description of the row after its value."""
    without_it: str
    """Description of the control after its value."""
    model: str = "teacher"
    """Model of the row."""
    control_model: str = "teacher"
    """Model of the control."""

    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Return row and model of the control and of the row."""
        return (self.control, self.control_model), (self.row, self.model)


def questions(rows: Rows) -> list[Question]:
    """Return the questions that the rows answer; two questions never compare the same rows."""
    asked: dict[tuple[tuple[str, str], tuple[str, str]], Question] = {}
    for question in _all(rows):
        row, control = rows.find(question.row), rows.find(question.control)
        if row is None or control is None:
            continue
        resolved = question._replace(row=row.name, control=control.name)
        if resolved.sides()[0] != resolved.sides()[1]:
            asked.setdefault(resolved.sides(), resolved)
    return list(asked.values())


def _all(rows: Rows) -> Iterator[Question]:
    yield Question(
        *("text", FULL, "no_text"),
        *("Text pays", "Text costs quality", "No effect of text was shown"),
        *("with it", "without it"),
    )
    yield Question(
        *("text against a second ID model", FULL, "id_model"),
        *("Text pays beyond the mixing of models", "Text is worse than a second ID model"),
        *("No gain of text over a second ID model was shown", "with text", "with ID models of the same form"),
    )
    yield Question(
        *("the items' own texts", FULL, "shuffled"),
        *("The items' own texts pay", "The items' own texts cost quality"),
        *("No gain of the items' own texts over shuffled ones was shown", "with them", "with shuffled texts"),
    )
    for name, text in rows.texts.items():
        if text.reads_language_model and not text.random_weights:
            yield from _of_pretrained_text(name)
    yield from _of_decoder()
    yield Question(
        *("distillation", FULL, "cross_entropy"),
        *("Distillation pays", "Distillation costs quality", "No effect of distillation was shown"),
        *("for the distilled student", "by cross-entropy alone", "student", "student"),
    )
    yield Question(
        *("student against teacher", FULL, FULL),
        *("The student is better than its teacher", "The student loses quality against its teacher"),
        *("No difference between student and teacher was shown", "for the student", "for the teacher"),
        *("student", "teacher"),
    )


def _of_pretrained_text(name: str) -> Iterator[Question]:
    yield Question(
        *(f"pretraining of {name}", f"text_{name}", f"random_{name}"),
        *(f"Pretraining of {name} pays", f"Pretraining of {name} costs quality"),
        *(f"No effect of the pretraining of {name} was shown", "with it", "with random weights"),
    )
    yield Question(
        *(f"{name} against words", f"text_{name}", "words"),
        *(f"The pretrained text of {name} pays beyond plain words", f"Plain words are better than {name}"),
        *(f"No difference between {name} and plain words was shown", f"with {name}", "with plain words"),
    )


def _of_decoder() -> Iterator[Question]:
    yield Question(
        *("the decoder", FULL, "no_decoder"),
        *("The decoder pays", "The decoder costs quality", "No effect of the decoder was shown"),
        *("with it", "without it"),
    )
    yield Question(
        *("pretraining of the decoder", FULL, "random_decoder"),
        *("Pretraining of the decoder pays", "Pretraining of the decoder costs quality"),
        *("No effect of the decoder's pretraining was shown", "with it", "with random weights"),
    )
