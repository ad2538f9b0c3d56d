"""Decoders with random weights, for tests."""

from typing import Any

import torch

from slmrec.config import DecoderSettings
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.text.item_text import ItemText


def tiny_decoder(
    architecture: dict[str, Any],
    num_items: int,
    *,
    prompt: tuple[int, int] = (0, 0),
    text_components: int | None = None,
    train_items: bool = False,
    **settings: Any,
) -> DecoderRecommender:
    """Return a decoder in eval mode over random item vectors of width 8, with a random prompt.

    Args:
        architecture: Configuration of the backbone in transformers' names; all its layers are kept.
        num_items: V.
        prompt: Number of tokens before and after the items.
        text_components: Width of random text vectors of the items; None: no text.
        train_items: Whether the item vectors train.
        settings: Fields of `DecoderSettings`.
    """
    torch.manual_seed(0)
    backbone = random_decoder(architecture)
    depth, width = backbone.config.num_hidden_layers, backbone.config.hidden_size
    prefix, response = (0.3 * torch.randn(length, width) for length in prompt)
    vectors = torch.cat([torch.zeros(1, 8), torch.randn(num_items, 8)])
    text = None
    if text_components is not None:
        text = ItemText(torch.cat([torch.zeros(1, text_components), torch.randn(num_items, text_components)]))
    model = build_decoder(
        DecoderSettings(backbone="tiny", num_layers=depth, **{"lora": None, **settings}),
        Backbone(backbone, prefix, response),
        vectors,
        text,
        section="finetune",
        train_items=train_items,
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
