"""Tiny models of 40 items, for the tests of what is made of a model folder."""

from collections.abc import Callable

import torch

from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.loader import Model
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.models.titles import Titles

NUM_ITEMS = 40
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 11,
    "initializer_range": 0.3,
}
LORA = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["gate_proj", "up_proj", "down_proj"]}


def sasrec() -> SasRec:
    torch.manual_seed(0)
    model = SasRec(SasRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_history_items=6))
    torch.nn.init.normal_(model.item_embeddings.weight)
    return model.eval()


def decoder(positions: str = "contiguous", prompt: bool = True, lora: bool = False, titles: bool = False) -> Model:
    torch.manual_seed(0)
    backbone = random_decoder(LLAMA)
    table = backbone.get_input_embeddings().weight.detach()
    vectors = torch.cat([torch.zeros(1, 5), torch.randn(NUM_ITEMS, 5)])
    model = build_decoder(
        Backbone(backbone, table[: 3 if prompt else 0].clone(), table[3 : 5 if prompt else 3].clone()),
        (0, 1),
        torch.cat([torch.zeros(1, 8), torch.randn(NUM_ITEMS, 8)]),
        source="random",
        lora=LORA if lora else None,
        positions=positions,
        max_history_items=6,
        item_dropout=0.0,
        train_items=False,
        titles=Titles(vectors, 3, "both") if titles else None,
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ensemble(lora: bool = False) -> Ensemble:
    member = decoder(prompt=False, lora=lora, titles=True)
    assert isinstance(member, DecoderRecommender)
    return Ensemble.of(member, [sasrec()], [0.3]).eval()


MODELS: dict[str, Callable[[], Model]] = {
    "sasrec": sasrec,
    "decoder": decoder,
    "right-aligned": lambda: decoder("right_aligned"),
    "titles": lambda: decoder(prompt=False, titles=True),
    "ensemble": ensemble,
}
