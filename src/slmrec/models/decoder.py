"""Decoder recommender: layers of a pretrained causal decoder over item vectors.

Teacher and student belong to this class and differ in depth only. The class trains and is evaluated;
`slmrec.inference.freeze` prepares it for answers.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from slmrec.config.training import DecoderTraining, Engine
from slmrec.errors import ConfigError
from slmrec.models.backbone import load_decoder, random_decoder, read_architecture
from slmrec.models.layers import (
    LayerStates,
    add_branch_dropout,
    compile_layers,
    empty_decoder,
    keep_layers,
    layers_per_block,
)
from slmrec.models.model import ItemTable, Model, embedding_table, register
from slmrec.models.packed.attention import KeysValues
from slmrec.models.packed.batch import PackedBatch, free_positions, pack
from slmrec.models.packed.interface import use_packed_attention
from slmrec.models.packed.masks import AttentionPattern, PrefillAttention
from slmrec.models.padded import encode_rows, is_padded
from slmrec.models.text.item_text import TextMap, TitleMap, TitleSide
from slmrec.models.untrusted import check_decoder
from slmrec.models.weights import add_adapters, own_state_dict, with_layers
from slmrec.types import Encoded, Histories, SequenceEncoder

Positions = Literal["contiguous", "right_aligned"]
Prefix = list[KeysValues]
"""Keys and values of the prompt prefix by layer."""


class DecoderRecommenderConfig(PretrainedConfig):
    """Architecture of a `DecoderRecommender`, and the backbone with the frozen layers under its adapters.

    With adapters and no `backbone`, the folder holds the frozen layers too; `base_model` names where they come from.
    """

    model_type = "slmrec_decoder"

    def __init__(self, **values: Any) -> None:
        defaults = {
            "decoder": {},
            "num_items": 1,
            "item_dim": 64,
            "num_prefix_tokens": 0,
            "num_response_tokens": 0,
            "positions": "contiguous",
            "max_history_items": 50,
            "item_dropout": 0.0,
            "layer_dropout": 0.0,
            "backbone": None,
            "base_model": None,
            "layers": (),
            "lora": None,
            "quantization": None,
            "titles": None,
        }
        for name, default in defaults.items():
            value = values.pop(name, default)
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        check_decoder(vars(self))
        super().__init__(**values)

    @property
    def adapts_backbone(self) -> bool:
        """True if the layers under the adapters are those of the backbone, which the model's folder does not hold."""
        return bool(self.lora and self.backbone)


class DecoderRecommender(Model):
    """User vectors of width D from histories, through a decoder of width H; a `SequenceEncoder`.

    The model reads [prefix; items; response]. The user vector is computed at the last token, or, when every position
    is supervised, at each item. The users of a batch form one packed sequence without padding, so a user vector does
    not depend on the other users.

    Source: SLMRec, the LLM-based recommender (after E4SRec).

    Example:
        >>> sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        >>> decoder = {"model_type": "llama", "num_attention_heads": 2, **sizes}
        >>> model = DecoderRecommender(DecoderRecommenderConfig(decoder=decoder, num_items=100, item_dim=8)).eval()
        >>> model.encode(Histories(torch.tensor([[3, 7, 0]]), torch.tensor([2]))).users.shape
        torch.Size([1, 8])
    """

    config_class = DecoderRecommenderConfig
    base_model_prefix = "decoder_recommender"
    config: DecoderRecommenderConfig
    engine: Engine = "auto"
    """Form of the batches that are encoded; no property of the weights, so it is not saved."""

    def __init__(self, config: DecoderRecommenderConfig, decoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.adapts_backbone and decoder is None:  # the layers under the adapters would be random
            raise ConfigError(
                f"a model with adapters on {config.backbone!r} holds none of its layers; open its folder with "
                "slmrec.Recommender.from_pretrained"
            )
        self.decoder = decoder if decoder is not None else empty_decoder(config.decoder)
        width = self.decoder.config.hidden_size
        if config.lora:
            add_adapters(self.decoder, config.lora)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.item_dim, padding_idx=0)
        self.item_dropout = nn.Dropout(config.item_dropout)
        self.layer_dropout = nn.Dropout(config.layer_dropout)
        if config.layer_dropout:
            add_branch_dropout(self.decoder, self.layer_dropout)
        self.titles = None
        input_width = score_width = config.item_dim
        if config.titles:
            self.titles = TitleMap(config.num_items, config.titles["num_components"], config.titles["width"])
            self.title_side: TitleSide = config.titles["side"]
            input_width += config.titles["width"] * (self.title_side != "score")
            score_width += config.titles["width"] * (self.title_side != "input")
        self.input_proj = nn.Linear(input_width, width)
        self.score = nn.Linear(width, score_width, bias=False)
        self.register_buffer("prefix", torch.zeros(config.num_prefix_tokens, width))
        self.register_buffer("response", torch.zeros(config.num_response_tokens, width))
        self.is_loaded_in_4bit = getattr(self.decoder, "is_loaded_in_4bit", False)  # read by num_parameters
        use_packed_attention(self.decoder)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep all weights: they come from a backbone, a teacher or a file, or have PyTorch's initialisation."""

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of one user: prefix, history and response."""
        return len(self.prefix) + self.max_history_items + len(self.response)

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.decoder.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Depth."""
        return len(self.decoder.layers)

    @property
    def reads_prefixes_in_one_pass(self) -> bool:
        """True if the state of each position equals that of the prefix that ends there, read alone."""
        moves_with_length = self.config.positions == "right_aligned" and len(self.prefix) > 0
        return not moves_with_length and not len(self.response)

    @property
    def decoder_part(self) -> "DecoderRecommender":
        """Decoder whose layers a student may start from: the model itself."""
        return self

    @property
    def final_norm(self) -> nn.Module:
        """Norm between the last layer and the head.

        Raises:
            ConfigError: The decoder has no norm where LLaMA has it.
        """
        norm = getattr(self.decoder, "norm", None)
        if not isinstance(norm, nn.Module):
            raise ConfigError(
                f"backbone {type(self.decoder).__name__}: its final norm is not found; choose a LLaMA-like decoder"
            )
        return norm

    def item_vectors(self) -> Tensor:
        """Return (V+1, D) item vectors; row 0 is padding."""
        if self.titles is None or self.title_side == "input":
            return self.item_embeddings.weight
        return torch.cat([self.item_embeddings.weight, self.titles()], dim=1)

    def item_inputs(self, items: Tensor) -> Tensor:
        """Return (..., H) input vectors of items for the first layer."""
        vectors = self.item_embeddings(items)
        if self.titles is not None and self.title_side != "score":
            vectors = torch.cat([vectors, self.titles(items)], dim=-1)
        return cast(Tensor, self.input_proj(self.item_dropout(vectors)))

    def encode(
        self,
        histories: Histories,
        *,
        every_position: bool = False,
        num_blocks: int = 0,
        prefix: Prefix | None = None,
    ) -> Encoded:
        """Return user vectors (N, D) and, with `num_blocks` > 0, the hidden states (N, H) at the end of each block.

        Args:
            histories: Histories on the device of the model.
            every_position: Encode every item position instead of only the newest one.
            num_blocks: Number of blocks of equal depth whose final hidden states are returned.
            prefix: Keys and values of the prompt prefix from `prefill`; None: they are computed with the batch.

        Raises:
            ConfigError: The depth is not a multiple of the number of blocks.
        """
        per_block = layers_per_block(self.num_layers, num_blocks)
        if is_padded(self, histories):
            return encode_rows(self, histories, every_position, num_blocks, per_block)
        batch, states = self._encode_packed(histories, every_position, num_blocks > 0, prefix)
        last = states.output[batch.supervised_in_output]
        if not num_blocks:
            return Encoded(self.score(last))
        inner = [states.inputs[per_block * k][batch.supervised] for k in range(1, num_blocks)]
        return Encoded(self.score(last), (*inner, last))

    def hidden_states_of_layers(
        self, histories: Histories, *, every_position: bool = False, prefix: Prefix | None = None
    ) -> Tensor:
        """Return (depth + 1, N, H): the input of the first layer at the supervised positions, and each layer's output.

        All states, the last one too, are taken before the final norm; `early_exit` turns any of them into user
        vectors. The arguments are those of `encode`.
        """
        before_norm: list[Tensor] = []
        hook = self.final_norm.register_forward_pre_hook(lambda _, arguments: before_norm.append(arguments[0]))
        try:
            batch, states = self._encode_packed(histories, every_position, True, prefix)
        finally:
            hook.remove()
        inner = [inputs[batch.supervised] for inputs in states.inputs]
        return torch.stack([*inner, before_norm[-1][0, batch.supervised_in_output]])

    def early_exit(self, states: Tensor) -> Tensor:
        """Return the user vectors (N, D) that the head computes from states (N, H) of any layer.

        The states of the last layer give the user vectors of `encode`.
        """
        return cast(Tensor, self.score(self.final_norm(states)))

    def prefill(self) -> Prefix | None:
        """Return the keys and values of the prompt prefix, or None if there is no prefix.

        They depend on the weights only: compute them once for all batches that are encoded without training.
        """
        if not len(self.prefix):
            return None
        attention = PrefillAttention(self.max_tokens)
        self.run_layers(self.prefix, torch.arange(len(self.prefix), device=self.prefix.device), attention)
        return attention.recorded

    def pack(self, histories: Histories, every_position: bool, prefix_cached: bool) -> PackedBatch:
        """Return the packed layout of a batch; `prefix_cached`: the prefix takes no place in it."""
        pads = free_positions(histories, self.config.positions, self.config.max_history_items)
        return pack(histories, every_position, len(self.prefix), len(self.response), prefix_cached, pads)

    def run_layers(
        self, inputs: Tensor, position_ids: Tensor, pattern: AttentionPattern, all_states: bool = False
    ) -> LayerStates:
        """Run the layers and the final norm over one sequence.

        Args:
            inputs: (tokens, H) input vectors of the first layer.
            position_ids: (tokens,) positions.
            pattern: Attention pattern of the sequence.
            all_states: Return the input of every layer too.
        """
        output = self.decoder(
            inputs_embeds=inputs[None],
            position_ids=position_ids[None],
            pattern=pattern,
            use_cache=False,
            output_hidden_states=all_states,
        )
        layer_inputs = output.hidden_states[:-1] if all_states else ()
        return LayerStates(output.last_hidden_state[0], tuple(states[0] for states in layer_inputs))

    @classmethod
    def without_weights(cls, config: DecoderRecommenderConfig) -> "DecoderRecommender":
        """Return the model of an architecture; below adapters are the frozen layers of the backbone."""
        if not config.adapts_backbone:
            return cls(config)
        backbone = load_decoder(str(config.backbone), config.quantization, download=False)
        keep_layers(backbone, config.layers)
        (model := cls(config, backbone)).set_trainable(train_items=False)
        return model

    @classmethod
    def skeleton(cls, config: DecoderRecommenderConfig) -> "DecoderRecommender":
        """Return the model on the meta device; below adapters are layers of the backbone's architecture."""
        if not config.adapts_backbone:
            return cast(DecoderRecommender, super().skeleton(config))
        with torch.device("meta"):
            backbone = random_decoder(read_architecture(str(config.backbone), download=False))
            keep_layers(backbone, config.layers)
            return cls(config, backbone)

    @property
    def has_adapters(self) -> bool:
        """True if the layers are frozen and have adapters."""
        return bool(self.config.lora)

    def merged(self) -> "DecoderRecommender":
        """Return a copy with its adapters merged and nothing quantised, which opens without the backbone."""
        dropouts = {name: getattr(self.config, name) for name in ("item_dropout", "layer_dropout")}
        (copy := with_layers(self, range(self.num_layers), **dropouts).eval()).set_trainable(train_items=False)
        return copy

    def own_state_dict(self) -> dict[str, Tensor]:
        """Return all weights but the adapters; above the layers of a backbone, only the heads and item vectors."""
        return own_state_dict(self)

    def text_maps(self) -> dict[str, TextMap]:
        """Return the module that reads item texts, if there is one."""
        return {} if self.titles is None else {"titles": self.titles}

    def map_decoders(self, convert: "Callable[[DecoderRecommender], nn.Module]") -> SequenceEncoder:
        """Return the converted model."""
        return cast(SequenceEncoder, convert(self))

    def apply_training_options(self, settings: DecoderTraining) -> None:
        """Choose the engine, and turn on gradient checkpointing and compilation of the layers."""
        self.engine = settings.engine
        if settings.gradient_checkpointing:
            self.decoder.activation_checkpointing_enable()
        if settings.torch_compile:
            compile_layers(self.decoder)

    def set_trainable(self, train_items: bool) -> None:
        """Let the adapters and heads train, the layers unless they have adapters, and the item vectors if requested."""
        for name, parameter in self.named_parameters():
            frozen = self.has_adapters and name.startswith("decoder.") and "lora_" not in name
            parameter.requires_grad_(not frozen)
        self.item_embeddings.requires_grad_(train_items)

    def item_tables(self) -> list[ItemTable]:
        """Return the item embeddings and the text vectors."""
        return [embedding_table(self), *(text.table() for text in self.text_maps().values())]

    def _encode_packed(
        self, histories: Histories, every_position: bool, all_states: bool, prefix: Prefix | None
    ) -> tuple[PackedBatch, LayerStates]:
        batch = self.pack(histories, every_position, prefix is not None)
        items = self.item_inputs(batch.items_of(histories))
        inputs = batch.inputs(items, None if prefix is not None else self.prefix, self.response)
        pattern = batch.attention(self.max_tokens, prefix)
        return batch, self.run_layers(inputs, batch.position_ids, pattern, all_states)


register(DecoderRecommender)
