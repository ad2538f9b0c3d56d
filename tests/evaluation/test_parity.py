"""Our ranking metrics against ranx, which computes in float64; torchmetrics cannot show 1e-12: it ends in float32."""

from typing import Any

import numpy as np
import pytest
import torch

from slmrec.evaluation.metrics import HIT_CUTOFFS, NDCG_CUTOFFS, ranks_of_targets, tie_draws, user_metrics

pytestmark = pytest.mark.heavy

NAMES = {
    **{f"hit@{k}": f"hit_rate@{k}" for k in HIT_CUTOFFS},
    **{f"ndcg@{k}": f"ndcg@{k}" for k in NDCG_CUTOFFS},
    "mrr": "mrr",
}


@pytest.fixture(scope="module")
def ranx(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes minutes, and the same Python runs without
        patch.setenv("IR_DATASETS_HOME", str(tmp_path_factory.mktemp("ir_datasets")))  # made on import
        return pytest.importorskip("ranx", reason="ranx is not installed: pip install 'slmrec[parity]'")


@pytest.mark.parametrize(("num_users", "num_candidates", "seed"), [(200, 60, 0), (50, 7, 1), (20, 1000, 2)])
def test_metrics_of_every_user_are_those_of_ranx(ranx: Any, num_users: int, num_candidates: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = np.stack([generator.permutation(num_candidates) for _ in range(num_users)]).astype(np.float64)  # no ties
    targets = generator.integers(num_candidates, size=num_users)
    draws = tie_draws(num_users, seed)
    ranks = ranks_of_targets(torch.from_numpy(scores), torch.from_numpy(targets), draws)
    users = [f"{user:04d}" for user in range(num_users)]
    relevant = ranx.Qrels({user: {str(target): 1} for user, target in zip(users, targets, strict=True)})
    run = ranx.Run(
        {user: {str(item): score for item, score in enumerate(row)} for user, row in zip(users, scores, strict=True)}
    )
    theirs = ranx.evaluate(relevant, run, list(NAMES.values()), return_mean=False)
    ours = user_metrics(ranks)
    assert ours.keys() == NAMES.keys()
    for name, values in ours.items():
        assert theirs[NAMES[name]].dtype == np.float64
        np.testing.assert_allclose(values, theirs[NAMES[name]], rtol=0, atol=1e-12, err_msg=name)
        assert abs(values.mean() - theirs[NAMES[name]].mean()) <= 1e-12
