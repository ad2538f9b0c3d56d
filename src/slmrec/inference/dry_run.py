"""Trial of a recommender when its folder is opened, so that what is accepted does not fail at the first request."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from slmrec.errors import CheckpointError, SlmrecError
from slmrec.files import one_line

if TYPE_CHECKING:
    from slmrec.inference.recommender import Recommender


def check_outputs(recommender: "Recommender", folder: Path) -> None:
    """Encode one history; this also fills the caches that the model keeps for inference.

    Raises:
        CheckpointError: Item or user vectors are not finite.
    """
    item_id = recommender.vocabulary.item_ids[0].as_py()
    if not recommender.ranker.model.item_vectors().isfinite().all():
        raise CheckpointError(f"{folder}: the item vectors contain NaN or infinity; copy the folder again or retrain")
    if not recommender.encode([[item_id]], timestamps=[[0]]).isfinite().all():
        raise CheckpointError(f"{folder}: the model returns NaN or infinity; copy the folder again or retrain")


@contextmanager
def failures_reported(folder: Path) -> Iterator[None]:
    """Report whatever goes wrong with the model of a folder, whose configuration may have been edited.

    Raises:
        CheckpointError: The model cannot be run.
    """
    try:
        yield
    except SlmrecError:
        raise
    except Exception as error:  # a configuration that was edited can fail in any way
        raise CheckpointError(
            f"{folder}: the model cannot be run ({type(error).__name__}: {one_line(error, 200)}); copy the folder "
            "again or retrain"
        ) from error
