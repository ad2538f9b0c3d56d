"""The decoder recommender: the kept layers of a pretrained causal decoder, read over item vectors.

Teacher and student are both of this class and differ in depth alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.errors import ConfigError
from slmrec.models.backbone import drop_token_table, random_decoder
from slmrec.models.fused_llama import MAX_WEIGHTS, LeanLayers, is_plain
from slmrec.models.packed.attention import KeysValues
from slmrec.models.packed.batch import Row, pack
from slmrec.models.packed.interface import read_newest, use_packed_attention
from slmrec.models.packed.masks import Continuations, Packing, Recorder
from slmrec.models.titles import TitleMap, TitleSide
from slmrec.models.watch import Watch, is_untouched
from slmrec.types import Encoded, Histories

Positions = Literal["contiguous", "right_aligned"]


class DecoderRecommenderConfig(PretrainedConfig):
    """Architecture of a `DecoderRecommender`, and where the frozen layers of an adapter come from."""

    model_type = "slmrec_decoder"

    def __init__(
        self,
        decoder: dict[str, Any] | None = None,
        num_items: int = 1,
        item_dim: int = 64,
        num_prefix_tokens: int = 0,
        num_response_tokens: int = 0,
        positions: Positions = "contiguous",
        max_history_items: int = 50,
        item_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        backbone: str | None = None,
        layers: tuple[int, ...] = (),
        lora: dict[str, Any] | None = None,
        quantization: dict[str, Any] | None = None,
        titles: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.decoder = decoder or {}
        self.num_items = num_items
        self.item_dim = item_dim
        self.num_prefix_tokens = num_prefix_tokens
        self.num_response_tokens = num_response_tokens
        self.positions = positions
        self.max_history_items = max_history_items
        self.item_dropout = item_dropout
        self.layer_dropout = layer_dropout
        self.backbone = backbone
        self.layers = list(layers)
        self.lora = lora
        self.quantization = quantization
        self.titles = titles
        super().__init__(**kwargs)


class DecoderRecommender(PreTrainedModel):
    """User vectors of width D from histories, through a decoder of width H; a `SequenceEncoder`.

    Reads [prefix; items; response] and takes the user vector at the last token, or, when every position is asked
    for, at each item. Pads stand on the right, where a causal decoder cannot see them, so that a user's vector never
    depends on the batch.

    Source: SLMRec, the LLM-based recommender (after E4SRec).
    """

    config_class = DecoderRecommenderConfig
    base_model_prefix = "decoder_recommender"
    config: DecoderRecommenderConfig

    def __init__(self, config: DecoderRecommenderConfig, decoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.lora and decoder is None:  # else the layers under the adapters would be random
            raise ConfigError(
                f"a model with adapters on {config.backbone!r} holds none of its layers; open its folder with "
                "slmrec.Recommender.from_pretrained"
            )
        self.decoder = decoder if decoder is not None else _empty_decoder(config.decoder)
        width = self.decoder.config.hidden_size
        if config.lora:
            inject_adapter_in_model(lora_config(config.lora), self.decoder)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.item_dim, padding_idx=0)
        self.item_dropout = nn.Dropout(config.item_dropout)
        self.layer_dropout = nn.Dropout(config.layer_dropout)
        self._idle_hooks: list[Any] = [read_newest]
        if config.layer_dropout:
            self._idle_hooks.append(drop_out_branches(self.decoder, self.layer_dropout))
        self.titles = None
        read = scored = config.item_dim
        if config.titles:
            self.titles = TitleMap(config.num_items, config.titles["num_components"], config.titles["width"])
            self.title_side: TitleSide = config.titles["side"]
            read += config.titles["width"] * (self.title_side != "score")
            scored += config.titles["width"] * (self.title_side != "input")
        self.input_proj = nn.Linear(read, width)
        self.score = nn.Linear(width, scored, bias=False)
        self.register_buffer("prefix", torch.zeros(config.num_prefix_tokens, width))
        self.register_buffer("response", torch.zeros(config.num_response_tokens, width))
        self.all_tied_weights_keys: dict[str, str] = {}
        self._kept_prefix: tuple[Any, list[KeysValues]] | None = None
        self._kept_short: _Kept | None = None
        self._is_lean = False
        self.is_loaded_in_4bit = getattr(self.decoder, "is_loaded_in_4bit", False)  # num_parameters asks
        use_packed_attention(self.decoder)

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a backbone, a teacher or a file; parts made new keep PyTorch's initialisation."""

    @property
    def num_items(self) -> int:
        """V."""
        return self.config.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history the model reads."""
        return self.config.max_history_items

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.decoder.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Depth."""
        return len(self.decoder.layers)

    @property
    def decoder_part(self) -> "DecoderRecommender":
        """Decoder whose layers a student may start from: the model itself."""
        return self

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        if self.titles is None or self.title_side == "input":
            return self.item_embeddings.weight
        return torch.cat([self.item_embeddings.weight, self.titles()], dim=1)

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """User vectors (N, D) and, if asked for, the states (N, H) at the end of each of `num_blocks` blocks.

        Raises:
            ConfigError: the depth is not a multiple of the number of blocks.
        """
        per_block = self._layers_per_block(num_blocks) if num_blocks else 0
        row, states = self._run(histories, every_position, num_blocks > 0)
        # With only the newest position read, the last layer has run for those tokens alone.
        last = states.last[row.last_places]
        if not num_blocks:
            return Encoded(self.score(last))
        before = [states.before[per_block * k][row.places] for k in range(1, num_blocks)]
        return Encoded(self.score(last), (*before, last))

    def layer_states(self, histories: Histories, *, every_position: bool = False) -> Tensor:
        """(depth + 1, N, H): what the first layer reads at the read-out positions, then what each layer puts out.

        The last one too is before the final norm; `read_early` makes user vectors of any of them.
        """
        normed: list[Tensor] = []
        hook = self.final_norm.register_forward_pre_hook(lambda _, given: normed.append(given[0]))
        try:
            row, states = self._run(histories, every_position, True)
        finally:
            hook.remove()
        before = [read[row.places] for read in states.before]
        return torch.stack([*before, normed[-1][0, row.last_places]])

    def read_early(self, states: Tensor) -> Tensor:
        """(N, D) user vectors of states (N, H) of any layer, as if it were the last; of the last, those of `encode`."""
        users: Tensor = self.score(self.final_norm(states))
        return users

    @property
    def final_norm(self) -> nn.Module:
        """What stands between the last layer and the head.

        Raises:
            ConfigError: the decoder does not keep it where LLaMA does.
        """
        norm = getattr(self.decoder, "norm", None)
        if not isinstance(norm, nn.Module):
            raise ConfigError(
                f"backbone {type(self.decoder).__name__}: its final norm is not found; choose a LLaMA-like decoder"
            )
        return norm

    def _run(self, histories: Histories, every_position: bool, all_states: bool) -> tuple[Row, "_States"]:
        """The plan of the batch's row, and what the decoder makes of it."""
        if torch.is_grad_enabled():
            self._forget()  # a step of training may follow, in eval mode too
        prefix = None if self.training or torch.is_grad_enabled() else self._prefix_states()
        pads = self._pads(histories)
        row = pack(histories, every_position, len(self.prefix), len(self.response), prefix is not None, pads)
        is_usual = not all_states and histories.items.shape[1] <= self.max_history_items
        short = self._shortened() if is_usual else None
        inputs = self._read(histories, row, prefix is not None, short)
        return row, self._decode(inputs, row.positions, row.packing(self.longest, prefix), short, all_states)

    def _decode(
        self, inputs: Tensor, positions: Tensor, packing: Packing, short: "_Short | None", all_states: bool = False
    ) -> "_States":
        """What the decoder makes of a row of inputs (tokens, H) at positions (tokens,)."""
        if short is not None:
            return _States(short.layers.run(inputs, positions, packing), ())
        output = self.decoder(
            inputs_embeds=inputs[None],
            position_ids=positions[None],
            packing=packing,
            use_cache=False,
            output_hidden_states=all_states,
        )
        before = output.hidden_states[:-1] if all_states else ()
        return _States(output.last_hidden_state[0], tuple(states[0] for states in before))

    def use_lean_layers(self) -> None:
        """Lets inference take the shorter way of `models/lean.py` where the decoder allows it.

        Answers are the same but for the rounding of sums. Not the default, and over once the model trains, so that
        trainings, which choose a model by its answers, come out as ever. Whoever writes to weights past their versions
        (see `Watch`) calls `eval()` afterwards, which forgets what was kept.
        """
        self._is_lean = True

    def _shortened(self) -> "_Short | None":
        """What inference needs in its shorter form, computed once; None where the model must run as it is."""
        if not self._is_lean or self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return None
        kept = self._kept_short
        if kept is None or kept.longest != self.longest or not kept.watch.is_unchanged:
            if not Watch.is_possible(self):
                return None
            self._kept_short = kept = _Kept(Watch(self), self.longest, self._shorten())
        return kept.short

    def _shorten(self) -> "_Short | None":
        if not is_plain(self.decoder) or not is_untouched(self, self._idle_hooks):
            return None
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode cannot be copied with the model
            items = torch.arange(self.num_items + 1)
            inputs = self.item_inputs(items) if len(items) * self.hidden_size <= MAX_WEIGHTS else None
            return _Short(LeanLayers(self.decoder, self.longest), inputs)

    def _forget(self) -> None:
        """Lets go of what was computed for inference."""
        self._kept_prefix = self._kept_short = None

    def forward(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Call `encode`, for wrappers that call the model as a function."""
        return self.encode(histories, every_position=every_position, num_blocks=num_blocks)

    @property
    def longest(self) -> int:
        """Tokens of the longest user: prefix, history and response."""
        return len(self.prefix) + self.max_history_items + len(self.response)

    def train(self, mode: bool = True) -> "DecoderRecommender":
        """As `nn.Module.train`; forgets what was computed for inference."""
        self._forget()
        self._is_lean = self._is_lean and not mode
        super().train(mode)
        return self

    @property
    def is_incremental(self) -> bool:
        """Whether `append` can be used: not where every new item moves all others."""
        return self.config.positions == "contiguous"

    def new_state(self) -> "UserState":
        """The state of a user without history, for `append`."""
        return UserState([])

    def append(self, state: "UserState", item: int) -> Tensor:
        """The user vector (D,) after one more item; updates the state.

        Costs one item and the response, however long the history, until the state holds `max_history_items`: then
        the oldest item goes, all positions move, and the newest items are read again, unless `make_room` was called.

        Raises:
            ConfigError: positions are right-aligned, so that every new item moves all others.
        """
        return self.append_all([state], [[item]])[0]

    def append_all(self, states: list["UserState"], items: list[list[int]]) -> Tensor:
        """The user vectors (B, D) after some more items each; updates the states, which must be distinct.

        Costs the new items and the responses, in one pass for all users; a user whose items no longer fit is read anew.

        Args:
            states: of each user.
            items: at least one for each user, oldest first.

        Raises:
            ConfigError: positions are right-aligned, so that every new item moves all others.
        """
        if self.training:
            raise ValueError("append is for inference: call eval() first")
        if not self.is_incremental:
            raise ConfigError(f"append needs positions: contiguous, this model has {self.config.positions}; use encode")
        with torch.inference_mode():
            return self._extend(states, [self._to_read(*pair) for pair in zip(states, items, strict=True)])

    def make_room(self, states: list["UserState"]) -> None:
        """Reads those that are full again without their oldest item, so that the next one costs no more than others.

        To be called between events, when there is time: answers are the same without it.
        """
        full = [state for state in states if len(state.items) == self.max_history_items > 1]
        if not full:
            return
        anew = [self.new_state() for _ in full]
        with torch.inference_mode():
            self._extend(anew, [state.items[1:] for state in full])
        for state, read in zip(full, anew, strict=True):
            state.items, state.past = read.items, read.past

    def _to_read(self, state: "UserState", items: list[int]) -> list[int]:
        """The items to read after the state; empties a state that they do not fit."""
        if len(state.items) + len(items) <= self.max_history_items:
            return items
        items = [*state.items, *items][-self.max_history_items :]
        state.items, state.past = [], None
        return items

    def _extend(self, states: list["UserState"], items: list[list[int]]) -> Tensor:
        """The user vectors after some more items each, all of which fit."""
        short, device = self._shortened(), self.prefix.device
        inputs = self._looked_up(torch.tensor([item for some in items for item in some], device=device), short)
        if len(self.response):
            parts = torch.split(inputs, [len(some) for some in items])
            inputs = torch.cat([part for some in parts for part in (some, self.response)])
        lengths = [len(some) + len(self.response) for some in items]
        starts = [len(self.prefix) + len(state.items) for state in states]
        places = [start + at for start, length in zip(starts, lengths, strict=True) for at in range(length)]
        pasts = [state.past for state in states]
        packing = Continuations(self.longest, lengths, pasts, self._prefix_states(), device)
        last = self._decode(inputs, torch.tensor(places, device=device), packing, short).last
        for state, read, own in zip(states, items, torch.split(packing.recorded(), lengths), strict=True):
            # Copied, since a view would keep the keys and values of the whole batch.
            past = own[:0] if state.past is None else state.past
            state.past = torch.cat([past, own[: len(read)]])
            state.items = [*state.items, *read]
        if len(last) > len(states):
            last = last[torch.tensor([end - 1 for end in accumulate(lengths)], device=device)]
        users: Tensor = self.score(last)
        return users

    def item_inputs(self, items: Tensor) -> Tensor:
        """(..., H) what the layers read for some items."""
        vectors = self.item_embeddings(items)
        if self.titles is not None and self.title_side != "score":
            vectors = torch.cat([vectors, self.titles(items)], dim=-1)
        projected: Tensor = self.input_proj(self.item_dropout(vectors))
        return projected

    def _looked_up(self, items: Tensor, short: "_Short | None") -> Tensor:
        """(tokens, H) as `item_inputs`, taken from where they are kept."""
        return self.item_inputs(items) if short is None or short.inputs is None else short.inputs.index_select(0, items)

    def _read(self, histories: Histories, row: "Row", prefix_known: bool, short: "_Short | None") -> Tensor:
        """(tokens, H): the prefix unless it is known, then each user's items and response."""
        items = self._looked_up(histories.items[row.item_rows, row.item_columns], short)
        if not len(self.response) and prefix_known:
            return items
        parts = [items] if prefix_known else [self.prefix.to(items.dtype), items]
        if not len(self.response):
            return torch.cat(parts)
        return torch.cat([*parts, self.response.to(items.dtype)])[row.order]

    def _pads(self, histories: Histories) -> Tensor:
        """(B,) positions that the pads of a user take up."""
        if self.config.positions == "contiguous":
            return torch.zeros_like(histories.lengths)
        return self.config.max_history_items - histories.lengths

    def _prefix_states(self) -> list[KeysValues] | None:
        """Keys and values of the prefix by layer, computed once; None without prefix."""
        if not len(self.prefix):
            return None
        key = _versions(self)
        if self._kept_prefix is None or self._kept_prefix[0] != key:
            recorder = Recorder(self.longest)
            places = torch.arange(len(self.prefix), device=self.prefix.device)
            self._decode(self.prefix, places, recorder, self._shortened())
            self._kept_prefix = (key, recorder.recorded)
        return self._kept_prefix[1]

    def _layers_per_block(self, num_blocks: int) -> int:
        if self.num_layers % num_blocks:
            raise ConfigError(
                f"distill.num_blocks is {num_blocks}, which does not divide a depth of {self.num_layers}; "
                "choose a common divisor of the depths of teacher and student"
            )
        return self.num_layers // num_blocks


class _States(NamedTuple):
    """What a decoder makes of a row."""

    last: Tensor
    """(tokens, H) after the final norm; (B, H) where the last layer ran for the newest tokens alone."""
    before: tuple[Tensor, ...]
    """(tokens, H) what each layer read; empty unless asked for."""


class _Kept(NamedTuple):
    """A model's shorter form, kept as long as the model is what it was."""

    watch: Watch
    longest: int
    """Tokens of the longest user that it can read."""
    short: "_Short | None"
    """None: the model must run as it is."""


class _Short(NamedTuple):
    """A model in its shorter form."""

    layers: LeanLayers
    inputs: Tensor | None
    """(V+1, H) what the layers read for each item; None where that would be large."""


@dataclass
class UserState:
    """What `DecoderRecommender.append` keeps of a user."""

    items: list[int]
    """The newest items, oldest first."""
    past: Tensor | None = None
    """(items, W): of each item the keys and values of all layers, side by side; None before the first."""


def _versions(model: DecoderRecommender) -> tuple[Any, ...]:
    """Changes when a weight, its place, or the precision does."""
    return (
        torch.is_autocast_enabled(model.prefix.device.type),
        *((value.data_ptr(), value._version) for value in model.parameters()),
    )


def drop_out_branches(decoder: PreTrainedModel, dropout: nn.Dropout) -> Callable[..., Any]:
    """Dropout on what attention and MLP of each layer add to the states, as SASRec has it; the hook that does it."""

    def dropped(_: nn.Module, __: Any, output: Any) -> Any:
        return dropout(output) if isinstance(output, Tensor) else (dropout(output[0]), *output[1:])

    for layer in decoder.layers:
        if not isinstance(getattr(layer, "mlp", None), nn.Module):
            raise ConfigError(
                f"layer_dropout: the MLPs of {type(decoder).__name__} are not found; set it to 0, or choose a "
                "LLaMA-like decoder"
            )
        for branch in (layer.self_attn, layer.mlp):
            branch.register_forward_hook(dropped)
    return dropped


def _empty_decoder(settings: dict[str, Any]) -> PreTrainedModel:
    decoder = random_decoder(
        settings | {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    )
    drop_token_table(decoder)
    return decoder


def lora_config(settings: dict[str, Any]) -> LoraConfig:
    """PEFT's settings of the adapters."""
    return LoraConfig(**(settings | {"target_modules": list(settings["target_modules"])}))


AutoConfig.register(DecoderRecommenderConfig.model_type, DecoderRecommenderConfig)
AutoModel.register(DecoderRecommenderConfig, DecoderRecommender)
