"""Tiny models of 40 items, for the tests of what is made of a model folder."""

from collections.abc import Callable

import torch
from decoders import tiny_decoder

from slmrec.config import LoraSettings
from slmrec.models.build import student_from
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.model import Model
from slmrec.models.sasrec import SasRec, SasRecConfig

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
LORA = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0}


def sasrec() -> SasRec:
    torch.manual_seed(0)
    model = SasRec(SasRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_history_items=6))
    torch.nn.init.normal_(model.item_embeddings.weight)
    return model.eval()


def decoder(
    positions: str = "contiguous", prompt: bool = True, lora: bool = False, titles: bool = False
) -> DecoderRecommender:
    return tiny_decoder(
        LLAMA,
        NUM_ITEMS,
        prompt=(3, 2) if prompt else (0, 0),
        text_components=5 if titles else None,
        item_text_width=3,
        lora=LORA if lora else None,
        positions=positions,
        max_history_items=6,
    )


def adapted_student() -> DecoderRecommender:
    """A student with adapters of its own on the merged layers of an adapted teacher, which its folder holds."""
    teacher = decoder("right_aligned", lora=True)
    student = student_from(teacher, (1, 0), item_dropout=0.0, train_items=False, lora=LoraSettings(**LORA))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return student.eval()


def ensemble(lora: bool = False) -> Ensemble:
    members = {"decoder": decoder(prompt=False, lora=lora, titles=True), "sasrec": sasrec()}
    return Ensemble.of(members, {"decoder": 0.7, "sasrec": 0.3}).eval()


MODELS: dict[str, Callable[[], Model]] = {
    "sasrec": sasrec,
    "decoder": decoder,
    "right-aligned": lambda: decoder("right_aligned"),
    "titles": lambda: decoder(prompt=False, titles=True),
    "ensemble": ensemble,
}
