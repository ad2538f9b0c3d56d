"""The errors that a user can cause. Each message says where, what was found, what was expected and what to do."""


class SlmrecError(Exception):
    """A mistake the user can mend; the command line prints its message on one line and exits with code 2."""


class ConfigError(SlmrecError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(SlmrecError):
    """An input file or table cannot be read as interactions."""


class CheckpointError(SlmrecError):
    """A model folder is missing, incomplete, or belongs to other data or settings."""


class StorageError(SlmrecError):
    """A remote file or folder is missing, locked, or cannot be reached, read or written."""


class TrainingError(SlmrecError):
    """Training cannot go on, for example because the loss is no longer finite."""


class UnknownItemsWarning(UserWarning):
    """Users whose history contains only items that the model does not know get the most popular items."""
