"""The layers of a small LLaMA at inference on a CPU: the sums of transformers' own layers, and little else.

For a row of few tokens the products of a small decoder take less time than what lies between them: modules within
modules, hooks, keywords, an attention interface, many small operations. Here the layers are one loop over copies of
their weights, laid out for few tokens. Whatever is not exactly transformers' LLaMA, or is large, runs as ever.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama as llama

from slmrec.models.packed.attention import KeysValues, ScoreRule
from slmrec.models.packed.masks import NewestQueries, PackedRow, Packing

MAX_WEIGHTS = 2**25
"""Of a decoder whose layers are copied, 128 MiB; what is larger is bound by its products."""
_PLAIN = {
    llama.LlamaModel,
    llama.LlamaDecoderLayer,
    llama.LlamaAttention,
    llama.LlamaMLP,
    llama.LlamaRMSNorm,
    llama.LlamaRotaryEmbedding,
    nn.ModuleList,
    nn.Linear,
    nn.Embedding,
}
_FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn"}
"""Rotary positions whose angles do not depend on the longest position of a call."""


def is_plain(decoder: PreTrainedModel) -> bool:
    """Whether a decoder is a small LLaMA of transformers as it is: no adapter, quantised map or bias; on a CPU."""
    if any(type(part) not in _PLAIN and not name.endswith(".mlp.act_fn") for name, part in decoder.named_modules()):
        return False
    weights = dict(decoder.named_parameters())
    return (
        decoder.rotary_emb.rope_type in _FIXED_ROTATIONS
        and sum(weight.numel() for weight in weights.values()) <= MAX_WEIGHTS
        and all(weight.is_cpu and weight.dtype == torch.float32 for weight in weights.values())
        and not any(name.endswith(".bias") for name in weights)
    )


class LeanLayers:
    """The layers and the final norm of a decoder that `is_plain`, as they are now; made without gradients.

    Args:
        decoder: the LLaMA.
        num_positions: positions are below this.
    """

    def __init__(self, decoder: PreTrainedModel, num_positions: int) -> None:
        self._layers = [_Layer.of(layer) for layer in decoder.layers]
        self._final_norm, self._final_scale = _Norm.of(decoder.norm), _Norm.scale(decoder.norm)
        self._rotations = _rotations(decoder, num_positions)

    def run(self, states: Tensor, positions: Tensor, packing: Packing) -> Tensor:
        """(tokens, H) what the decoder makes of a row (tokens, H), after its final norm.

        Args:
            states: what the first layer reads.
            positions: (tokens,).
            packing: what sees what; if it names the newest tokens, the last layer runs for these alone: (B, H).
        """
        rotation = _Rotation(*self._rotations.index_select(0, positions).unbind(1))
        row = packing if isinstance(packing, PackedRow) else None
        newest = None if row is None else row.newest
        for number, layer in enumerate(self._layers):
            normed = layer.attention_norm(states)
            if row is None or newest is None or layer is not self._layers[-1]:
                query, own = layer.read(normed, rotation)
            else:
                own = layer.answers(normed, rotation)
                states, packing = states[newest], NewestQueries(row, own)
                query = layer.questions(normed[newest], _Rotation(*(part[newest] for part in rotation)))
            attended = packing.attend(number, query, own, layer.rule)
            states = torch.addmm(states, attended.flatten(1), layer.out)
            states = torch.addmm(states, layer.gated(layer.mlp_norm(states)), layer.down)
        return self._final_norm(states) * self._final_scale


class _Rotation(NamedTuple):
    """Rotary positions of some tokens."""

    cosine: Tensor
    """(tokens, 1, head width)."""
    sine: Tensor
    """(tokens, 1, head width), negative in the first half."""

    def of(self, heads: Tensor) -> Tensor:
        """The heads (tokens, heads, head width), turned to their positions."""
        swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
        return torch.addcmul(heads * self.cosine, swapped, self.sine)


class _Norm(NamedTuple):
    """A norm without its scale, which the product after it has taken over.

    x / sqrt(mean(x^2) + e) is sqrt(H) times x / sqrt(sum(x^2) + H e), which takes three operations.
    """

    floor: Tensor
    """(1,) sqrt(H e)."""

    @classmethod
    def of(cls, norm: Any) -> "_Norm":
        return cls(norm.weight.new_tensor([len(norm.weight) * norm.variance_epsilon]).sqrt())

    def __call__(self, states: Tensor) -> Tensor:
        return states / torch.hypot(torch.linalg.vector_norm(states, dim=1, keepdim=True), self.floor)

    @staticmethod
    def scale(norm: Any) -> Tensor:
        """(H,) what is left to multiply with."""
        scale: Tensor = norm.weight * len(norm.weight) ** 0.5
        return scale


class _Layer(NamedTuple):
    """Copies of the weights of a layer, (in, out), so that one token reads them fast; maps of one input are one."""

    attention_norm: _Norm
    query_key_value: Tensor
    out: Tensor
    mlp_norm: _Norm
    gate_up: Tensor
    down: Tensor
    activation: Callable[[Tensor], Tensor]
    rule: ScoreRule
    num_heads: int
    num_key_heads: int
    head_width: int

    @classmethod
    def of(cls, layer: Any) -> "_Layer":
        """Those of one of transformers' layers."""
        attention, mlp, width = layer.self_attn, layer.mlp, layer.self_attn.head_dim
        return cls(
            _Norm.of(layer.input_layernorm),
            _scaled(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj.weight.T.contiguous(),
            _Norm.of(layer.post_attention_layernorm),
            _scaled(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj),
            mlp.down_proj.weight.T.contiguous(),
            mlp.act_fn,
            ScoreRule(attention.scaling, None, 0.0, is_fused=True),
            attention.q_proj.out_features // width,
            attention.k_proj.out_features // width,
            width,
        )

    def read(self, normed: Tensor, rotation: _Rotation) -> tuple[Tensor, KeysValues]:
        """Queries (tokens, heads, head width), and keys and values."""
        heads = torch.mm(normed, self.query_key_value).view(len(normed), -1, self.head_width)
        turned = rotation.of(heads[:, : -self.num_key_heads])
        keys, values = turned[:, self.num_heads :], heads[:, -self.num_key_heads :]
        return turned[:, : self.num_heads], KeysValues(keys, values)

    def questions(self, normed: Tensor, rotation: _Rotation) -> Tensor:
        """The queries alone."""
        weights = self.query_key_value[:, : self.num_heads * self.head_width]
        return rotation.of(torch.mm(normed, weights).view(len(normed), -1, self.head_width))

    def answers(self, normed: Tensor, rotation: _Rotation) -> KeysValues:
        """The keys and values alone."""
        weights = self.query_key_value[:, self.num_heads * self.head_width :]
        keys, values = torch.mm(normed, weights).view(len(normed), -1, self.head_width).chunk(2, dim=1)
        return KeysValues(rotation.of(keys), values)

    def gated(self, normed: Tensor) -> Tensor:
        """(tokens, width of the MLP)."""
        gate, up = torch.mm(normed, self.gate_up).chunk(2, dim=1)
        return self.activation(gate) * up


def _scaled(norm: Any, *maps: nn.Linear) -> Tensor:
    """(H, out) the weights of maps side by side, times the scale of the norm before them."""
    return (torch.cat([one.weight for one in maps]) * _Norm.scale(norm)).T.contiguous()


def _rotations(decoder: PreTrainedModel, num_positions: int) -> Tensor:
    """(positions, 2, 1, head width): cosines, and sines that are negative in the first half."""
    cosine, sine = decoder.rotary_emb(torch.zeros(1, dtype=torch.float32), torch.arange(num_positions)[None])
    first, second = sine[0].chunk(2, dim=-1)
    return torch.stack([cosine[0], torch.cat([-first, second], dim=-1)], dim=1)[:, :, None]
