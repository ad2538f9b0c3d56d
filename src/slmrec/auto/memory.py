"""Batches that fit into memory: smaller ones whose gradients are accumulated, so that results stay the same."""

from typing import Any

from slmrec.auto.measure import STUDENT, Costs
from slmrec.auto.rules import Draft
from slmrec.errors import ConfigError


def fitted_to_memory(made: Draft, costs: Costs, memory: int) -> Draft:
    """Return the draft with batches divided until each training fits into the memory, by its estimate.

    Args:
        made: Settings for the data.
        costs: Costs of the models.
        memory: Bytes of memory.

    Raises:
        ConfigError: The smallest batches do not fit.
    """
    for name, cost in costs.models.items():
        section = "distill.train" if name == STUDENT else f"pretrain.{name}.train"
        train = made.config.distill.train if name == STUDENT else made.config.pretrain[name].train
        size = int(train.per_device_train_batch_size)
        if not cost.memory or cost.memory[1] <= memory:
            continue
        parts = next((parts for parts, needed in cost.memory.items() if needed <= memory), None)
        if parts is None:
            raise ConfigError(
                f"{_size(memory)} of memory are too little for {section.removesuffix('.train')}, which needs about "
                f"{_size(min(cost.memory.values()))}; give a larger --memory, or free some"
            )
        changes: dict[str, Any] = {
            f"{section}.per_device_train_batch_size": size // parts,
            f"{section}.gradient_accumulation_steps": parts,
        }
        made = made.set(f"a batch of {size} needs about {_size(cost.memory[1])} of {_size(memory)}", changes)
    return made


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
