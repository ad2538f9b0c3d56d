"""Training with weights, gradients and optimiser state sharded over the processes (FSDP2)."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from slmrec import processes
from slmrec.errors import ConfigError

T = TypeVar("T")


class ShardedCopy:
    """Copy of a loss that trains with a shard of its weights on each process; the loss itself stays whole, on the CPU.

    Each layer is gathered when it computes, and freed again; everything outside the layers is gathered for the whole
    step. Children of the loss that do not train, such as a frozen teacher, are shared with the copy and not sharded.

    Args:
        loss: Module that owns the trained parameters, on the CPU.

    Raises:
        ConfigError: A weight is quantised.

    Source: Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (VLDB 2023).
    """

    def __init__(self, loss: nn.Module) -> None:
        device = processes.device()
        shared = [child for child in loss.children() if not any(value.requires_grad for value in child.parameters())]
        self._whole = [child for child in loss.children() if child not in shared]
        _check_not_quantised(self._whole)
        for child in shared:
            child.to(device)
        self.module: nn.Module = deepcopy(loss, {id(child): child for child in shared})
        for layer in _layers(self.module, shared):
            fully_shard(layer)
        fully_shard(self.module, ignored_params={value for child in shared for value in child.parameters()})
        names = {id(value): name for name, value in loss.named_parameters()}
        own = dict(self.module.named_parameters())
        values = [value for child in self._whole for value in child.parameters()]
        self._pairs = [(own[names[id(value)]], value) for value in values]
        """Each sharded parameter, and the whole one that it was copied from."""
        self._device = device

    def gather(self) -> None:
        """Copy the trained weights into the whole loss; all processes take part."""
        for sharded, value in self._pairs:
            value.data.copy_(whole(sharded))

    def on_whole(self, function: Callable[[], T]) -> Callable[[], T]:
        """Return a function that finds the whole loss, with the trained weights, on the device of this process."""

        def call() -> T:
            self.gather()
            for child in self._whole:
                child.to(self._device)
            try:
                return function()
            finally:
                for child in self._whole:
                    child.to("cpu")

        return call


def whole(value: Tensor) -> Tensor:
    """Return a tensor that may be sharded as a whole one on the CPU; all processes take part."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def placed_like(value: Tensor, example: Tensor) -> Tensor:
    """Return a whole tensor, sharded as an example is; all processes take part."""
    if not isinstance(example, DTensor) or isinstance(value, DTensor) or value.shape != example.shape:
        return value
    return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)


def _layers(module: nn.Module, shared: list[nn.Module]) -> Iterator[nn.Module]:
    """Yield the layers of all encoders inside a module."""
    for child in module.children():
        if child not in shared:
            for part in child.modules():
                if isinstance(layers := getattr(part, "layers", None), nn.ModuleList):
                    yield from layers


def _check_not_quantised(modules: list[nn.Module]) -> None:
    for module in modules:
        if any(not torch.is_floating_point(value) for value in module.parameters()):
            raise ConfigError(
                "train.fsdp is true, but the frozen layers are quantised (quantization_config); leave one of them out"
            )
