"""Encoding of whole batches in tests."""

from typing import Any

from slmrec.types import Batch, Encoded


def encode(model: Any, batch: Batch, num_blocks: int = 0) -> Encoded:
    """Encode the supervised positions of a batch."""
    encoded: Encoded = model.encode(batch.histories, every_position=batch.every_position, num_blocks=num_blocks)
    return encoded
