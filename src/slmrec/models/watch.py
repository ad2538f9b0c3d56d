"""Whether a module is still what it was, so that what was computed from it may be kept."""

from collections.abc import Callable, Collection
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from transformers.utils import output_capturing

_version, _training = attrgetter("_version"), itemgetter("training")
_GLOBAL_HOOKS = (torch_modules._global_forward_pre_hooks, torch_modules._global_forward_hooks)
"""PyTorch's, which run before and after every module."""


def is_untouched(module: nn.Module, idle_hooks: Collection[Callable[..., Any]]) -> bool:
    """Whether calling the parts of a module does what their classes say, in eval mode, and nothing else.

    transformers' own hooks, which note states when these are asked for, do not count, nor do the idle ones.
    """
    parts = list(module.modules())
    hooks = (hook for part in parts for each in _hooks(part) for hook in each.values())
    if any(hook not in idle_hooks and hook.__module__ != output_capturing.__name__ for hook in hooks):
        return False
    return not any(part.training or "forward" in vars(part) for part in parts) and not any(_GLOBAL_HOOKS)


class Watch:
    """Tells whether a module still has the parts, weights, hooks and mode that it had.

    Weights tell by their versions. What writes past these is not seen: `weight.data`, an array of NumPy over the same
    memory, an optimiser whose step is one kernel (`fused=True`).
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        dicts: list[dict[str, Any]] = [
            each for part in parts for each in (part._modules, part._parameters, part._buffers)
        ]
        self._own = [vars(part) for part in parts]
        self._dicts = [each for each in dicts if each]
        self._hooks = [each for part in parts for each in _hooks(part)]
        self._tensors = [*module.parameters(), *module.buffers()]
        self._held, self._numbers = self._seen()

    @staticmethod
    def is_possible(module: nn.Module) -> bool:
        """Whether its weights tell when they change: not those that were made in inference mode."""
        return not any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing changed since the watch began."""
        held, numbers = self._seen()
        return numbers == self._numbers and all(map(is_, held, self._held))

    def _seen(self) -> tuple[list[Any], list[int]]:
        """The parts; how many they are, what each would do besides, where the weights lie and in which version."""
        held = [*chain.from_iterable(each.values() for each in self._dicts)]
        besides = [*map(len, self._hooks), *map(len, _GLOBAL_HOOKS), *map(len, self._own), *map(_training, self._own)]
        return held, [len(held), *besides, *map(Tensor.data_ptr, self._tensors), *map(_version, self._tensors)]


def _hooks(part: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return part._forward_pre_hooks, part._forward_hooks
