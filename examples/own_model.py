"""Trains a student and a loss term of your own: python examples/own_model.py LOG OUTPUT.

The student is a recurrent network, a class of this file. `register` lets settings name it: `kind: gru`.
"""

import sys
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import slmrec
from slmrec.config import Config, StudentSettings
from slmrec.models import Model, ModelConfig, register
from slmrec.training.terms import DistillationOutputs, DistillationTerm, register_term
from slmrec.types import Encoded, Histories


class GruSettings(StudentSettings):
    """Architecture of a recurrent network, as the YAML gives it."""

    kind: Literal["gru"] = "gru"
    hidden_size: int = Field(32, ge=1)
    max_history_items: int = Field(50, ge=1)


class GruConfig(ModelConfig):
    """Architecture of a `Gru`, as config.json of its folder holds it."""

    model_type = "own_gru"
    section = GruSettings


class Gru(Model):
    """User vectors from the states of a recurrent network over item vectors."""

    config_class = GruConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.post_init()

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        return self.item_embeddings.weight

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return user vectors (N, D) at every position, or at the newest one."""
        states, _ = self.gru(self.item_embeddings(histories.items))
        if every_position:
            positions = torch.arange(states.shape[1], device=states.device)
            return Encoded(states[positions < histories.lengths[:, None]])
        return Encoded(states[torch.arange(len(states), device=states.device), histories.lengths - 1])


class TargetMargin(DistillationTerm):
    """Squared error of the score of the next item above the mean score: a loss term of your own."""

    name = "target_margin"
    needs_scores = ("student", "teacher")

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        margins = []
        for model in (outputs.student, outputs.teacher):
            targets = (model.users * model.items[outputs.targets]).sum(dim=1)
            margins.append(targets - model.users @ model.items[1:].mean(dim=0))
        student, teacher = margins
        return (student - teacher.detach()).square().mean()


register(Gru, kind="gru")
register_term(TargetMargin)


def main() -> None:
    """Trains SASRec, and the student of this file from it."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/own_model.py LOG OUTPUT")
    log, output = sys.argv[1:]
    train = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 0}
    config = Config.model_validate(
        {
            "pretrain": {"sasrec": {"train": train}},
            "finetune": {"backbone": None, "item_vectors": None, "ensemble": ["sasrec"]},  # SASRec is the teacher
            "distill": {
                "student": {"kind": "gru", "hidden_size": 16},
                "weights": {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1, "target_margin": 0.1},
                "train": train,
            },
            "evaluate": {"protocols": ["full_history_excluded"]},
        }
    )
    run = slmrec.fit(log, config=config, output=output)
    print(f"the student is a {type(run.models['student'].model).__name__}")
    print(f"elsewhere: Recommender.from_pretrained({output + '/distill'!r}, model_class=Gru)")


if __name__ == "__main__":
    main()
