"""Devices on which models answer."""

import torch

from slmrec.errors import ConfigError


def device_of(name: str | None) -> torch.device:
    """Return a device by name, or the default device.

    Raises:
        ConfigError: The device does not exist.
    """
    has_gpu = torch.cuda.is_available()
    if name is None:
        return torch.device("cuda" if has_gpu else "cpu")
    kind, _, number = name.partition(":")
    if kind == "cpu" and not number:
        return torch.device("cpu")
    if kind == "cuda" and has_gpu and (number or "0").isdecimal() and int(number or 0) < torch.cuda.device_count():
        return torch.device(name)
    available = "cpu, cuda" if has_gpu else "cpu"
    raise ConfigError(f"device is {name!r}, which is not available on this machine; choose one of: {available}")
