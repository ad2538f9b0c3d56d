"""Whether a module is still what it was, so that what was computed from it may be kept."""

from collections.abc import Callable, Collection
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn
from transformers.utils import output_capturing

_version = attrgetter("_version")


def has_hooks(module: nn.Module, but: Collection[Callable[..., Any]]) -> bool:
    """Whether something is to be called when one of the parts of a module is, other than what is named.

    transformers' own hooks, which note states when these are asked for, do not count.
    """
    hooks = (hook for part in module.modules() for each in _hooks(part) for hook in each.values())
    return any(hook not in but and hook.__module__ != output_capturing.__name__ for hook in hooks)


class Watch:
    """Tells whether a module still has the parts, weights and hooks that it had."""

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        dicts: list[dict[str, Any]] = [each for part in parts for each in (part._modules, part._parameters)]
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
        """The parts; how many they are, how many hooks each has, where the weights lie and in which version."""
        held = [*chain.from_iterable(each.values() for each in self._dicts)]
        versions = map(_version, self._tensors)
        return held, [len(held), *map(len, self._hooks), *map(Tensor.data_ptr, self._tensors), *versions]


def _hooks(part: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return part._forward_pre_hooks, part._forward_hooks
