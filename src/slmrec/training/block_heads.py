"""Heads of a model at its inner blocks, for multiple supervision; those of a teacher are kept for its distillation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slmrec.config import Config
from slmrec.data.tensor_files import read_tensors
from slmrec.errors import CheckpointError
from slmrec.files import one_line
from slmrec.training.full_softmax import CatalogueLoss

FILE = "block_heads.safetensors"


def block_heads(model: Any, num_blocks: int) -> nn.ModuleList:
    """Return linear heads W_k from the hidden states of a model to user vectors, one for each inner block."""
    sizes = model.hidden_size, model.item_vectors().shape[1]
    inner_blocks = range(num_blocks - 1)  # the last block is supervised through the user vector
    return nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in inner_blocks)


def block_supervision(
    heads: nn.ModuleList, states: Sequence[Tensor], items: Tensor, targets: Tensor, catalogue_loss: CatalogueLoss
) -> Tensor:
    """Return the cross-entropy of the user vectors of heads W_k at the inner blocks, summed over the blocks.

    Args:
        heads: B-1 heads.
        states: B hidden states (N, H); the last one has no head.
        items: (V+1, D) item vectors.
        targets: (N,) items 1..V.
        catalogue_loss: Cross-entropy of user vectors.

    Source: SLMRec, multiple supervision.
    """
    pairs = zip(heads, states[:-1], strict=True)
    return torch.stack([catalogue_loss(head(state), items, targets) for head, state in pairs]).sum()


def write_block_heads(heads: nn.ModuleList, folder: Path) -> None:
    """Write the heads into the folder of a teacher."""
    save_file({name: value.detach().cpu().contiguous() for name, value in heads.state_dict().items()}, folder / FILE)


def read_block_heads(folder: Path, config: Config) -> nn.ModuleList | None:
    """Return the heads of a teacher, if a term or an online teacher needs them.

    Args:
        folder: Folder of the teacher.
        config: All settings.

    Raises:
        CheckpointError: They are missing, damaged, or belong to another number of blocks.
    """
    distill = config.distill
    trains_heads = distill.mode == "online" and config.finetune.weights.multiple > 0
    if not distill.weights.block_kl and not trains_heads:
        return None
    path, num_heads = folder / FILE, distill.num_blocks - 1
    try:
        weights = read_tensors(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing, so the teacher has no heads at its blocks, which distill.weights.block_kl compares; "
            "train it with finetune.weights.multiple above 0, or set distill.weights.block_kl=0"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cut off or damaged ({one_line(error)}); train the teacher again") from None
    names = [f"{number}.weight" for number in range(num_heads)]
    if sorted(weights) != sorted(names) or any(value.ndim != 2 for value in weights.values()):
        raise CheckpointError(
            f"{path}: has {len(weights)} heads, but distill.num_blocks is {distill.num_blocks}, which takes "
            f"{num_heads}; set distill.num_blocks={len(weights) + 1}"
        )
    heads = nn.ModuleList()
    for name in names:
        width, hidden_size = weights[name].shape
        heads.append(nn.Linear(hidden_size, width, bias=False))
    heads.load_state_dict(weights)
    return heads
