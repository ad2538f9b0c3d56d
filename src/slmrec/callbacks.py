"""Callbacks of a run: methods of the caller's objects that are called when stages begin and end, and after epochs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

from slmrec.errors import ConfigError


@runtime_checkable
class Callback(Protocol):
    """Object whose methods are called during a run; a subclass overrides those that it needs.

    Stages are named by their folder, such as `pretrain/sasrec`. Stages that are skipped, since nothing has changed,
    call nothing. An exception in a method stops the run; the next run with the same output folder continues there.

    Example:
        >>> class Curve(Callback):
        ...     def on_epoch_end(self, stage, epoch, metrics):
        ...         print(stage, epoch, sorted(metrics)[-1])
        >>> with calling([Curve()]), stage_named("distill"):
        ...     epoch_ended(1, {"valid/ndcg@10": 0.1})
        distill 1 valid/ndcg@10
    """

    def on_stage_start(self, stage: str) -> None:
        """Called before a stage is executed."""

    def on_epoch_end(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        """Called after an epoch (from 1) has been validated and its state has been saved.

        Args:
            stage: Folder of the stage.
            epoch: Number of finished epochs.
            metrics: Entries of `training/log.jsonl`, such as `train/loss` and `valid/ndcg@10`.
        """

    def on_stage_end(self, stage: str, metrics: dict[str, float]) -> None:
        """Called when the folder of a stage is complete.

        Args:
            stage: Folder of the stage.
            metrics: Numbers of the stage, such as `wall_s`, and those of its `metrics.json` if it is flat.
        """


_callbacks: ContextVar[tuple[Callback, ...]] = ContextVar("callbacks", default=())
_stage: ContextVar[str | None] = ContextVar("stage", default=None)


@contextmanager
def calling(callbacks: Any) -> Iterator[None]:
    """Call some callbacks during everything that runs in the context.

    Args:
        callbacks: List of callbacks.

    Raises:
        ConfigError: It is no list, or an entry is no callback.
    """
    if not isinstance(callbacks, list | tuple):
        raise ConfigError(f"callbacks is a {type(callbacks).__name__}; expected a list of objects of slmrec.Callback")
    for number, callback in enumerate(callbacks):
        if isinstance(callback, type):
            raise ConfigError(f"callbacks[{number}] is the class {callback.__name__}; give an object: a call of it")
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks[{number}] is a {type(callback).__name__}; derive its class from slmrec.Callback, which has "
                "on_stage_start, on_epoch_end and on_stage_end"
            )
    token = _callbacks.set(tuple(callbacks))
    try:
        yield
    finally:
        _callbacks.reset(token)


@contextmanager
def stage_named(stage: str) -> Iterator[None]:
    """Name the stage that runs in the context, and call `on_stage_start`."""
    token = _stage.set(stage)
    try:
        for callback in _callbacks.get():
            callback.on_stage_start(stage)
        yield
    finally:
        _stage.reset(token)


def epoch_ended(epoch: int, metrics: Mapping[str, float]) -> None:
    """Call `on_epoch_end`, if a stage is running."""
    stage = _stage.get()
    for callback in () if stage is None else _callbacks.get():
        callback.on_epoch_end(str(stage), epoch, _plain(metrics))


def stage_ended(stage: str, metrics: Mapping[str, float]) -> None:
    """Call `on_stage_end`."""
    for callback in _callbacks.get():
        callback.on_stage_end(stage, _plain(metrics))


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a copy for each callback, without numbers of NumPy."""
    return {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
