"""Evaluation, ablation, and the studies of cold items and of depth."""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from slmrec.config.item_text import ItemTextConfig
from slmrec.config.section import Section, check, check_folder_names

PROTOCOLS = r"full_history_excluded|full|sampled_[1-9]\d*"
"""Pattern of the names of ranking protocols."""


class EvaluateConfig(Section):
    """Evaluation of all models side by side."""

    primary_protocol: str = "full_history_excluded"
    """Protocol by which early stopping, ensemble weights, ablations and the report decide; one of `protocols`."""
    protocols: tuple[str, ...] = Field(("full_history_excluded", "full", "sampled_999"), min_length=1)
    """Ranking protocols: `full_history_excluded`, `full`, or `sampled_N`, which ranks the target among N sampled
    negatives. One forward pass serves all."""
    splits: tuple[Literal["test", "valid"], ...] = Field(("test",), min_length=1)
    """Splits whose held-out items are ranked; results on `valid` are written to files of their own."""
    num_negatives: int | None = Field(None, ge=1)
    """Number of negatives of the sampled protocol; null: the number in its name, with which it must agree."""
    models: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the models to evaluate: base models, `popularity`, `cooccurrence`, `teacher`, `student`; null: all."""
    batch_size: int = Field(256, ge=1)
    """Number of users encoded at once."""
    ties: Literal["random", "as_hits"] = "random"
    """Items with the score of the target: ordered at random, spread evenly over the users, or all behind the target
    (`as_hits`, the reference). Validation during training breaks ties at random."""
    timing_users: int = Field(2000, ge=1)
    """Number of users over whom the speed of each model is measured, as the median of three rounds."""

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluateConfig":
        for name in self.protocols:
            check(
                re.fullmatch(PROTOCOLS, name) is not None,
                f"protocols has {name!r}; choose from full_history_excluded, full and sampled_N (such as sampled_999)",
            )
        check(len(set(self.protocols)) == len(self.protocols), f"protocols is {list(self.protocols)}; name each once")
        check(len(self.sampled) <= 1, f"protocols is {list(self.protocols)}; give one sampled protocol at most")
        check(
            self.num_negatives is None or not self.sampled or self.sampled == (self.num_negatives,),
            f"num_negatives is {self.num_negatives}, which disagrees with protocols {list(self.protocols)}; leave "
            "num_negatives out",
        )
        check(
            self.primary_protocol in self.protocols,
            f"primary_protocol is {self.primary_protocol!r}, which is not one of protocols {list(self.protocols)}",
        )
        return self

    @property
    def sampled(self) -> tuple[int, ...]:
        """Numbers of negatives of the sampled protocols."""
        return tuple(int(name.removeprefix("sampled_")) for name in self.protocols if name.startswith("sampled_"))


DISTILLATION_SEEDS = (42, 1, 2)
"""Seeds of `slmrec ablate --what distillation` where none are given."""


class AblateConfig(Section):
    """Variants of the distillation, controls of the language, or the claims of the paper, side by side; read by `slmrec
    ablate` alone.

    `--what distillation` reads `variants`, `seeds` and `baseline`; `--what language` reads `seeds`, `item_text` and
    `cold`; `--what paper` reads `seeds`, `learning_rates` and `full_depth_steps`.
    """

    variants: dict[str, dict[str, Any]] | None = None
    """Variants by name, each with the settings of distill that it changes: `{distill.weights.kl: 0}`. null: the recipe
    itself as `full`, the recipe without each of its terms, with cross-entropy alone, and in the other mode (online
    or offline). Source: ablation of the losses in SLMRec."""
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Seeds with which each variant is distilled; all share one teacher. With `--what language` everything is trained
    with each of them; with `--what paper` the rows of the main table. null: 42, 1 and 2; with `--what language` the
    seed of the run alone; with `--what paper` 1, 2 and 3."""
    baseline: str = "full"
    """Variant with which the others are compared."""
    item_text: dict[str, ItemTextConfig] = Field(default_factory=dict)
    """Further item texts that are compared with those of the recipe, by name."""
    learning_rates: tuple[float, ...] = Field((1e-4, 3e-4, 1e-3), min_length=1)
    """Learning rates that are tried with the first seed, for the teacher and then for the student; the best on
    validation is used in all rows."""
    full_depth_steps: int = Field(228, ge=1)
    """Number of training steps of the model of all layers, whose steps cost most."""
    cold: bool = True
    """Rank withheld items, too, which trains each model that differs by its text once more."""

    @model_validator(mode="after")
    def _consistent(self) -> "AblateConfig":
        seeds, rates = self.seeds or (), self.learning_rates
        check(len(set(seeds)) == len(seeds), f"seeds is {list(seeds)}; name each seed once")
        check(
            len(set(rates)) == len(rates) and min(rates) > 0,
            f"learning_rates is {list(rates)}; name each rate once, above 0",
        )
        check_folder_names(self.item_text, "item_text")
        names = ["full"] if self.variants is None else list(self.variants)
        check(self.baseline in names, f"baseline is {self.baseline!r}, which is not a variant; choose from {names}")
        for name, changes in (self.variants or {}).items():
            check(
                re.fullmatch(r"\w[\w.-]*", name) is not None and name != "base",
                f"variants has {name!r}: names are folders; use letters, digits, '_', '.' and '-', and not 'base'",
            )
            for key in changes:
                check(
                    key.startswith("distill."),
                    f"variants.{name} changes {key!r}; only settings of distill can differ (such as "
                    "distill.student.num_layers), since all variants share the earlier stages",
                )
        return self


class ColdConfig(Section):
    """Items that no model has trained on; read by `slmrec cold` and `slmrec ablate --what language` alone."""

    share: float = Field(0.1, gt=0, lt=1)
    """Share of the items whose events are withheld from training and histories; they are drawn by the seed."""
    min_train_events: int = Field(5, ge=1)
    """Number of training events from which an item may be drawn, so that it is known how well it ranks when it is
    trained on."""


class DepthConfig(Section):
    """Models of several depths, and the role of each layer of the deepest one; read by `slmrec depth` alone."""

    num_layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Depths to train, with the settings of finetune but without its ensemble; null: 1, 2, 4, ... and all layers of the
    backbone. The layers of the deepest model are analysed."""
    layer_steps: tuple[int, ...] = ()
    """Further models of every n-th layer of the deepest one, for each n given. Source: the reference's `interval`."""
    head_samples: int = Field(4000, ge=1)
    """Number of training samples to which a head is fitted for each layer."""
    similarity_users: int = Field(1000, ge=4)
    """Number of validation users over whom the representations of the layers are compared."""
    drop_users: int = Field(1000, ge=0)
    """Number of validation users for whom the deepest model is evaluated without each of its layers; 0: skip this."""
    quality_loss: float = Field(0.01, ge=0, lt=1)
    """Largest share of the best NDCG@10 that the recommended depth may lose; the smallest such depth is recommended."""

    @model_validator(mode="after")
    def _consistent(self) -> "DepthConfig":
        for name, values, least in (("num_layers", self.num_layers or (), 1), ("layer_steps", self.layer_steps, 2)):
            check(
                len(set(values)) == len(values) and min(values, default=least) >= least,
                f"{name} is {list(values)}; name each number once, from {least}",
            )
        return self
