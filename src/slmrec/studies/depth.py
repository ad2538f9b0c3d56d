"""Study of depth: teachers of several depths with equal training, and the contribution of each layer of the deepest."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from slmrec.config import Config
from slmrec.config.load import vary
from slmrec.errors import ConfigError
from slmrec.models.backbone import read_architecture
from slmrec.pipeline.run import run_stage
from slmrec.pipeline.stage import Build, run_step
from slmrec.pipeline.table import Stage, Step, stage_named, steps
from slmrec.studies.ablate import link_step
from slmrec.studies.depth_measurements import analyse_layers, validate_model, validate_without_layer
from slmrec.studies.depth_report import report

_LOG = logging.getLogger(__name__)
FOLDER = "depth"
SMALLEST_STUDENT = {"student": {"num_layers": 1}, "weights": {"ce": 1, "cosine": 0, "norm": 0, "multiple": 0}}
"""Section `distill` that is valid for a teacher of any depth; the study trains no student."""


def depth(config: Config, output: Path, force: bool = False) -> None:
    """Train a teacher of each depth, analyse the layers of the deepest one, and recommend a depth.

    All metrics are those of the validation split. Finished steps are skipped: each model has a folder `OUT/depth/NAME`
    like that of a run, whose earlier steps are links to those of `OUT`.

    Args:
        config: The recipe, with its section `depth`.
        output: Folder of the run.
        force: Redo finished steps.

    Raises:
        ConfigError: The backbone has fewer layers than a depth, or there is no backbone.
    """
    deepest, points = _points(config)
    needed = stage_named("finetune").reads(points[str(deepest)])
    shared = [step for step in steps(config) if step.folder in needed]
    for step in shared:
        run_step(step, config, output, force)
    for number, (name, recipe) in enumerate(points.items(), 1):
        _LOG.info("depth: %s (%d of %d)", name, number, len(points))
        point = output / FOLDER / name
        for step in shared:
            link_step(point, output, step)
        run_stage("finetune", recipe, point, force)
        _measure(validate_model, recipe, point, "validate", force)
    removed = range(deepest if config.depth.drop_users and deepest > 1 else 0)
    _measure_deepest(points[str(deepest)], output / FOLDER / str(deepest), removed, force)
    report(output / FOLDER, list(points), str(deepest), removed, config)


def _points(config: Config) -> tuple[int, dict[str, Config]]:
    """Return the largest depth, and the configuration of each model by name."""
    settings, available = config.depth, _available_layers(config)
    depths = settings.num_layers or _powers_of_two(available)
    if max(depths) > available:
        raise ConfigError(
            f"depth.num_layers is {list(depths)}, but the backbone {config.finetune.backbone!r} has {available} "
            f"layers; choose from 1-{available}"
        )
    deepest = max(depths)
    chosen = {str(number): {"num_layers": number, "layer_step": 1} for number in sorted(depths)}
    for step in settings.layer_steps:
        chosen[f"step{step}"] = {"num_layers": -(-deepest // step), "layer_step": step}
    return deepest, {name: _recipe(config, layers) for name, layers in chosen.items()}


def _available_layers(config: Config) -> int:
    finetune = config.finetune
    if finetune.backbone is None:
        raise ConfigError("finetune.backbone is null; the study of depth needs a backbone, such as smollm2-135m")
    architecture = finetune.backbone_config or read_architecture(finetune.backbone)
    return int(architecture["num_hidden_layers"])


def _powers_of_two(available: int) -> tuple[int, ...]:
    """Return the powers of two below a number of layers, and the number itself."""
    return (*(2**power for power in range((available - 1).bit_length())), available)


def _recipe(config: Config, layers: dict[str, int]) -> Config:
    """Return the configuration of one model; of the section `depth` it keeps what its own results depend on."""
    kept = ("head_samples", "similarity_users", "drop_users")
    changes: dict[str, Any] = {
        "finetune": config.finetune.model_dump(mode="json", exclude_unset=True)
        | {"layers": None, "ensemble": [], **layers},
        "depth": {name: getattr(config.depth, name) for name in kept},
        "distill": SMALLEST_STUDENT,
    }
    return vary(config, changes, "depth")


def _measure_deepest(recipe: Config, point: Path, removed: range, force: bool) -> None:
    _measure(analyse_layers, recipe, point, "layers", force)
    for layer in removed:
        _measure(partial(validate_without_layer, layer=layer), recipe, point, f"without{layer}", force)


def _measure(build: Build, recipe: Config, point: Path, name: str, force: bool) -> None:
    """Execute a measurement as a step with a folder of its own."""
    reads = ("prepare", "finetune")
    stage = Stage(FOLDER, "measure the layers of a model", reads=lambda config: reads, validates=True)
    run_step(Step(stage), recipe, point, force, target=point / name, build=build)
