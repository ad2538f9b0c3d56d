"""What is asked of trained models: the evaluation, the ablation and the study of depth."""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from slmrec.config.section import Section, check


class EvaluateConfig(Section):
    """All models side by side on the test split."""

    protocols: tuple[Literal["full_history_excluded", "full", "sampled"], ...] = (
        "full_history_excluded",
        "full",
        "sampled",
    )
    """Rankings to report; one forward pass serves all."""
    models: tuple[Literal["popularity", "cooccurrence", "sasrec", "companion", "teacher", "student"], ...] | None = (
        Field(None, min_length=1)
    )
    """What is evaluated; null: all that there is."""
    num_negatives: int = Field(999, ge=1)
    """Negatives a user of the `sampled` protocol, drawn once from the items outside the user's history and stored."""
    batch_size: int = Field(256, ge=1)
    """Users encoded at once."""
    timing_users: int = Field(2000, ge=1)
    """Users over whom the speed of each model is measured, in turn, the median of three rounds."""


class AblateConfig(Section):
    """Variants of the distillation, side by side; read by `slmrec ablate` alone."""

    variants: dict[str, dict[str, Any]] | None = None
    """By name, the settings of distill that differ, `{distill.weights.kl: 0}`; `{}` is the recipe as it is. null: the
    recipe as `full`, without each of its terms, with cross-entropy alone, and online (offline if the recipe is online).
    Source: SLMRec's ablation of its losses."""
    seeds: tuple[int, ...] = Field((42, 1, 2), min_length=1)
    """Each variant is distilled with each of these; all share one teacher."""
    baseline: str = "full"
    """The variant that the others are compared with."""

    @model_validator(mode="after")
    def _consistent(self) -> "AblateConfig":
        check(len(set(self.seeds)) == len(self.seeds), f"seeds are {list(self.seeds)}; name each seed once")
        names = ["full"] if self.variants is None else list(self.variants)
        check(self.baseline in names, f"baseline is {self.baseline!r}, which is no variant; choose of: {names}")
        for name, changes in (self.variants or {}).items():
            check(
                re.fullmatch(r"\w[\w.-]*", name) is not None and name != "base",
                f"variants has {name!r}: a variant is a folder; take letters, digits, '_', '.' and '-', and not 'base'",
            )
            for key in changes:
                check(
                    key.startswith("distill."),
                    f"variants.{name} changes {key!r}; only settings of distill can differ (distill.num_layers, "
                    "...), since what comes before is done once for all",
                )
        return self


class DepthConfig(Section):
    """Models of several depths, and what each layer of the deepest does; read by `slmrec depth` alone."""

    num_layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Depths to train, each as finetune says but alone, without ensemble; null: 1, 2, 4, ... and all layers that the
    backbone has. The deepest is the one whose layers are looked at."""
    layer_steps: tuple[int, ...] = ()
    """Train also models of every n-th layer of the deepest, for each n given. Source: the reference's `interval`."""
    head_samples: int = Field(4000, ge=1)
    """Training samples from which a head is fitted to each layer."""
    similarity_users: int = Field(1000, ge=4)
    """Validation users over whom the layers' representations are compared."""
    drop_users: int = Field(1000, ge=0)
    """Validation users whom the deepest model ranks for with each one of its layers left out; 0: leave none out."""
    quality_loss: float = Field(0.01, ge=0, lt=1)
    """The depth recommended is the smallest whose NDCG@10 falls short of the best one's by no more than this share."""

    @model_validator(mode="after")
    def _consistent(self) -> "DepthConfig":
        for name, values, least in (("num_layers", self.num_layers or (), 1), ("layer_steps", self.layer_steps, 2)):
            check(
                len(set(values)) == len(values) and min(values, default=least) >= least,
                f"{name} is {list(values)}; name each number once, from {least}",
            )
        return self
