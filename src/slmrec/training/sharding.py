"""Models larger than a device: training with sharded weights (FSDP2), and layers of a teacher on several devices."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from slmrec import processes
from slmrec.errors import ConfigError
from slmrec.models.model import Model

T = TypeVar("T")
DeviceMap = dict[str, int | str]
USABLE = 0.8
"""Share of the free memory of a GPU that layers may take; the rest is left to the tokens of a batch."""


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
        for part in self.module.modules():
            if isinstance(part, Model):
                part.is_sharded = True
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


def spread(teacher: Model, device_map: DeviceMap | None = None, offload_dir: Path | None = None) -> None:
    """Spread the layers of the decoder inside a teacher over the devices of this machine; it can then only be read.

    A layer moves its inputs to its own device. Layers for which the GPUs have no memory stay on the CPU, and are copied
    to a GPU when they compute. Batches are padded, since the attention pattern of a packed batch lies on one device.

    Args:
        teacher: The teacher, on the CPU; everything outside the decoder moves to the first device of the map.
        device_map: Device of each part of the decoder; None: by the free memory of the GPUs.
        offload_dir: Folder for parts on the device `disk`.

    Raises:
        ConfigError: The teacher has no decoder, its layers are quantised, or there are several processes.
    """
    if teacher.decoder_part is None:
        raise ConfigError("distill.teacher_device_map is auto, but the teacher has no decoder to spread; leave it out")
    decoder = teacher.decoder_part.decoder
    if getattr(decoder, "is_quantized", False):
        raise ConfigError(
            "distill.teacher_device_map is auto, but the layers of the teacher are quantised, which stay on one GPU; "
            "leave one of them out"
        )
    if processes.num_processes() > 1:
        raise ConfigError(
            f"distill.teacher_device_map is auto, but {processes.num_processes()} processes share the GPUs; run "
            "distill in one process, or leave it out"
        )
    device_map = device_map or _by_free_memory(decoder)
    main = next(iter(device_map.values()))
    own = {id(value) for value in (*decoder.parameters(), *decoder.buffers())}
    for value in (*teacher.parameters(), *teacher.buffers()):
        if id(value) not in own:
            value.data = value.data.to(main)
    if set(device_map.values()) == {main}:
        decoder.to(main)
        return
    dispatch_model(decoder, device_map, main_device=main, offload_dir=offload_dir)
    teacher.decoder_part.engine = "padded"


def _by_free_memory(decoder: nn.Module) -> DeviceMap:
    if not torch.cuda.is_available():
        return {"": "cpu"}
    layer: list[str] = [type(decoder.layers[0]).__name__]  # type: ignore[index]
    free: DeviceMap = get_balanced_memory(decoder, no_split_module_classes=layer)
    usable = {place: int(USABLE * int(size)) for place, size in free.items() if place != "cpu"}
    weights = sum(value.numel() * value.element_size() for value in decoder.parameters())
    return dict(infer_auto_device_map(decoder, usable | {"cpu": 2 * weights}, no_split_module_classes=layer))
