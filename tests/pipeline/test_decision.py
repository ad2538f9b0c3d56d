"""The rule that chooses the model to ship, on invented values of users, with every exchange, reason and doubt."""

import numpy as np
import pytest

from slmrec.pipeline.decision import Candidate, Decision, Difference, decide, doubts, reasons

NUM_USERS = 400
BASELINES = ["popularity", "cooccurrence", "sasrec"]
COIN = np.where(np.arange(NUM_USERS) % 2 == 0, 1.0, -1.0)


def model(mean: float, seconds: float = 1.0, spread: float = 0.0) -> Candidate:
    """A model of this NDCG@10; half of its users are better by `spread`, the others worse."""
    return Candidate(mean + spread * COIN, seconds)


def shipped(**models: Candidate) -> str:
    decision = decide(models, BASELINES)
    assert decision is not None
    return decision.ship


@pytest.mark.parametrize(
    ("student", "sasrec", "expected"),
    [
        (model(0.30, 3.0), model(0.29, 1.0), "student"),  # a third of the cost, but behind for certain
        (model(0.30, 3.0), model(0.29, 1.0, 0.2), "sasrec"),  # the interval contains 0
        (model(0.30, 2.9), model(0.29, 1.0, 0.2), "student"),  # not three times as fast
        (model(0.29, 3.0), model(0.30, 1.0, 0.2), "sasrec"),  # the best one
        (model(0.30, 1.0), model(0.29, 3.0, 0.2), "student"),
    ],
)
def test_the_best_model_is_shipped_unless_a_cheaper_one_is_no_worse(
    student: Candidate, sasrec: Candidate, expected: str
) -> None:
    assert shipped(popularity=model(0.1, 0.1), sasrec=sasrec, student=student) == expected


def test_of_several_cheaper_models_that_are_no_worse_the_best_is_shipped() -> None:
    cheap = {
        "popularity": model(0.27, 0.1, 0.5),
        "cooccurrence": model(0.29, 0.3, 0.5),
        "sasrec": model(0.28, 0.2, 0.5),
    }
    assert shipped(**cheap, student=model(0.30)) == "cooccurrence"


@pytest.mark.parametrize(("spread", "num_intervals"), [(0.24, 1), (0.26, 2)])  # 8 standard errors of 400 users
def test_intervals_of_models_that_are_far_behind_are_not_computed(
    monkeypatch: pytest.MonkeyPatch, spread: float, num_intervals: int
) -> None:
    asked = []

    def interval(differences: np.ndarray) -> tuple[float, float]:
        asked.append(differences)
        return 0.05, 0.15

    monkeypatch.setattr("slmrec.pipeline.decision.bootstrap_interval", interval)
    assert shipped(popularity=model(0.1, 0.1, spread), student=model(0.2)) == "student"
    assert len(asked) == num_intervals  # that of the difference to the baseline is always computed


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (model(0.380, 2.0), "student"),  # 95 % at twice the speed
        (model(0.379, 2.0), "teacher"),
        (model(0.380, 2.1), "teacher"),
    ],
)
def test_a_teacher_gives_way_to_a_student_that_keeps_its_quality(student: Candidate, expected: str) -> None:
    models = {"sasrec": model(0.2), "teacher": model(0.4, 4.0), "student": student}
    assert shipped(**models) == expected
    other = {"text" if name == "teacher" else name: one for name, one in models.items()}
    assert shipped(**other) == "text"  # other models give way only to one that is no worse


def test_a_student_that_replaces_its_teacher_gives_way_as_any_other() -> None:
    models = {"popularity": model(0.1), "cooccurrence": model(0.385, 0.2, 0.1)}
    models |= {"teacher": model(0.4, 4.0), "student": model(0.39)}
    decision = decide(models, BASELINES)
    assert decision is not None and decision.best == "teacher"
    assert [(one.model, one.instead_of) for one in decision.exchanges] == [
        ("student", "teacher"),
        ("cooccurrence", "student"),
    ]
    models["cooccurrence"] = model(0.395, 0.2)  # ahead of the student for certain, and behind the teacher
    assert shipped(**models) == "cooccurrence"


def test_models_without_any_hit_are_compared() -> None:
    nothing = {name: model(0.0, seconds) for name, seconds in {"teacher": 9.0, "student": 4.0, "sasrec": 1.0}.items()}
    assert shipped(**nothing, popularity=model(0.0, 8.0)) == "sasrec"


def test_the_baseline_is_the_best_other_than_the_shipped_model() -> None:
    models = {"popularity": model(0.1), "cooccurrence": model(0.2), "sasrec": model(0.3), "text": model(0.5)}
    decision = decide(models, BASELINES)
    assert decision is not None and (decision.ship, decision.against) == ("text", "sasrec")
    decision = decide({name: one for name, one in models.items() if name != "text"}, BASELINES)
    assert decision is not None and (decision.ship, decision.against) == ("sasrec", "cooccurrence")
    assert decision.difference == pytest.approx((0.1, 0.1, 0.1))
    assert decide({"text": model(0.5), "teacher": model(0.4)}, BASELINES) is None
    assert decide({"popularity": model(0.5), "teacher": model(0.4)}, BASELINES) is None


def test_reasons_are_sentences_with_figures() -> None:
    models = {"cooccurrence": model(0.2, 0.5), "sasrec": model(0.3, 0.25), "teacher": model(0.4, 4.0)}
    models["student"] = model(0.39, 1.25, 0.1)
    decision = decide(models, BASELINES)
    assert decision is not None
    first, exchange, ahead, cost = reasons(models, decision, BASELINES, "full")
    assert first == "On validation (full, 400 users), teacher has the highest NDCG@10 of 4 models: 0.4000."
    assert exchange == (
        "student (0.3900) is shipped instead of teacher: it keeps 97.5% of its NDCG@10 and is 3.2 times as fast."
    )
    assert ahead.startswith(
        "It is ahead of sasrec, the best of cooccurrence and sasrec, by 0.0900 (+30.0%, 95% interval "
    )
    assert cost == "It takes 1.25 s for 1,000 users, sasrec takes 0.25 s."
    models = {"popularity": model(0.0, 1.0, 0.3), "sasrec": model(0.01, 5.0)}
    decision = decide(models, BASELINES)
    assert decision is not None
    _, exchange, behind, _ = reasons(models, decision, BASELINES, "full")
    assert "the interval of their difference does not lie above zero (+0.0100, 95% interval -" in exchange
    assert exchange.endswith(", and it is 5.0 times as fast.")
    assert behind.startswith("It is behind sasrec by 0.0100 (-100.0%, 95% interval -")


def test_relative_differences_to_next_to_nothing_are_not_shown() -> None:
    for mean, shown in ((0.001, ""), (0.05, "+900.0%, ")):
        models = {"popularity": model(mean), "student": model(0.5)}
        decision = decide(models, BASELINES)
        assert decision is not None
        ahead = reasons(models, decision, BASELINES, "full")[1]
        assert ahead.startswith(f"It is ahead of popularity by {0.5 - mean:.4f} ({shown}95% interval")


def doubts_of(test: Difference | None = None, **models: Candidate) -> list[str]:
    decision = decide(models, BASELINES)
    assert isinstance(decision, Decision)
    return list(doubts(models, decision, test))


def test_no_doubts_about_a_model_that_is_clearly_better() -> None:
    assert doubts_of(Difference(-0.01, -0.02, 0.0), cooccurrence=model(0.1), student=model(0.3)) == []


def test_a_model_that_is_no_better_than_cooccurrence_is_doubtful() -> None:
    (doubt,) = doubts_of(cooccurrence=model(0.295, 1.0, 0.1), student=model(0.3))
    assert doubt.startswith("student is no better than cooccurrence (+0.0050, 95% interval -0.0")
    worse = {"cooccurrence": model(0.31), "teacher": model(0.32, 9.0), "student": model(0.305)}
    (doubt,) = doubts_of(**worse)
    assert doubt == "student is worse than cooccurrence (-0.0050, 95% interval -0.0050 to -0.0050)."


def test_a_baseline_that_no_trained_model_beats_is_doubtful() -> None:
    (doubt,) = doubts_of(cooccurrence=model(0.3), sasrec=model(0.1), student=model(0.2))
    assert doubt == (
        "No model that was trained is better than cooccurrence, which needs no training; the best of them, student, is "
        "worse than it (-0.1000, 95% interval -0.1000 to -0.1000)."
    )
    (doubt,) = doubts_of(cooccurrence=model(0.29, 0.1, 0.2), popularity=model(0.1), student=model(0.3))
    assert "the best of them, student, is no better than it" in doubt
    assert doubts_of(cooccurrence=model(0.3), popularity=model(0.2)) == []  # nothing was trained


def test_few_users_and_wide_intervals_are_doubtful() -> None:
    def few(number: int, spread: float) -> list[str]:
        values = 0.3 + spread * COIN[:number]
        return doubts_of(popularity=Candidate(np.full(number, 0.1), 1.0), student=Candidate(values, 1.0))

    assert few(100, 0.0) == [] and few(400, 0.2) == []
    assert few(98, 0.0)[0].startswith("98 users decide, and the interval is wide: ±0.0000 around an NDCG@10 of 0.3000")
    (doubt,) = few(400, 0.4)
    assert doubt.startswith("400 users decide, and the interval is wide: ±0.0")


def test_a_model_that_is_worse_on_test_is_doubtful() -> None:
    (doubt,) = doubts_of(Difference(-0.02, -0.03, -0.01), cooccurrence=model(0.1), student=model(0.3))
    assert doubt == (
        "On test, student is worse than cooccurrence (-0.0200, 95% interval -0.0300 to -0.0100); validation alone "
        "decides."
    )
