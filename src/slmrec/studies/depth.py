"""How deep the teacher has to be: models of several depths trained alike, and the layers of the deepest looked at."""

from functools import partial
from pathlib import Path
from typing import Any

from slmrec.config import Config
from slmrec.config.load import vary
from slmrec.errors import ConfigError
from slmrec.models.backbone import read_architecture
from slmrec.pipeline.run import run_stage
from slmrec.pipeline.stage import Build, run_step
from slmrec.pipeline.table import Stage, Step
from slmrec.run import write_report
from slmrec.studies.ablate import link_stage
from slmrec.studies.depth_readings import read_layers, validate_model, without_layer
from slmrec.studies.depth_report import report

BEFORE = ("prepare", "pretrain")
FOLDER = "depth"
STUDENT_ALONE = {  # of no account here, but it must fit to a teacher of any depth
    "distill": {
        "student": {"num_layers": 1},
        "num_blocks": 1,
        "weights": {"ce": 1, "cosine": 0, "norm": 0, "multiple": 0},
    }
}


def depth(config: Config, output: Path, force: bool = False) -> None:
    """Trains a teacher of each depth, reads the deepest one early, and reports what depth is worth, at last as a page.

    All on the validation split. What is done is skipped: each model has a folder of stages `OUT/depth/NAME` like a
    run's, whose first ones are links to those of `OUT`.

    Args:
        config: the recipe, with its `depth` section.
        output: folder of the run.
        force: redo what is done.

    Raises:
        ConfigError: a depth that the backbone does not have.
    """
    deepest, points = _points(config)
    for stage in BEFORE:
        run_stage(stage, config, output, force)
    for number, (name, recipe) in enumerate(points.items(), 1):
        print(f"depth: {name} ({number} of {len(points)})", flush=True)
        _run_point(recipe, output / FOLDER / name, force)
    dropped = range(deepest if config.depth.drop_users and deepest > 1 else 0)
    _read_deepest(points[str(deepest)], output / FOLDER / str(deepest), dropped, force)
    report(output / FOLDER, list(points), str(deepest), dropped, config)
    write_report(output, always=True)


def _points(config: Config) -> tuple[int, dict[str, Config]]:
    """The greatest depth, and the recipe of each model by name."""
    settings, available = config.depth, _layers_of(config)
    depths = settings.num_layers or _doubled(available)
    if max(depths) > available:
        raise ConfigError(
            f"depth.num_layers is {list(depths)}, but the backbone {config.finetune.backbone!r} has {available} "
            f"layers; choose of 1-{available}"
        )
    deepest = max(depths)
    chosen = {str(number): {"num_layers": number, "layer_step": 1} for number in sorted(depths)}
    for step in settings.layer_steps:
        chosen[f"step{step}"] = {"num_layers": -(-deepest // step), "layer_step": step}
    return deepest, {name: _recipe(config, layers) for name, layers in chosen.items()}


def _layers_of(config: Config) -> int:
    own = config.finetune.backbone_config
    architecture = read_architecture(config.finetune.backbone) if own is None else own
    return int(architecture["num_hidden_layers"])


def _doubled(available: int) -> tuple[int, ...]:
    return (*(2**power for power in range((available - 1).bit_length())), available)


def _recipe(config: Config, layers: dict[str, int]) -> Config:
    """That of one model; of the depth section it has what its own results depend on."""
    kept = ("head_samples", "similarity_users", "drop_users")
    changes: dict[str, Any] = {
        "finetune": config.finetune.model_dump(mode="json", exclude_unset=True)
        | {"layers": None, "ensemble": [], **layers},
        "depth": {name: getattr(config.depth, name) for name in kept},
        **STUDENT_ALONE,
    }
    return vary(config, changes, "depth")


def _run_point(recipe: Config, point: Path, force: bool) -> None:
    point.mkdir(parents=True, exist_ok=True)
    for stage in BEFORE:
        link_stage(point / stage, Path("..", "..", stage))
    run_stage("finetune", recipe, point, force)
    _read(validate_model, recipe, point, force, "validate")


def _read_deepest(recipe: Config, point: Path, dropped: range, force: bool) -> None:
    _read(read_layers, recipe, point, force, "layers")
    for layer in dropped:
        _read(partial(without_layer, layer=layer), recipe, point, force, f"without{layer}")


def _read(build: Build, recipe: Config, point: Path, force: bool, name: str) -> None:
    stage = Stage(FOLDER, "read the layers of a model", reads=lambda config: ("prepare", "finetune"))
    run_step(Step(stage), recipe, point, force, target=point / name, build=build)
