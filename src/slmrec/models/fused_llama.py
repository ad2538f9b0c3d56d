"""Fused inference layers: the layers of a small plain LLaMA on a CPU, with little overhead between the products.

For few tokens the matrix products of a small decoder take less time than the code between them: nested modules, hooks,
keywords, the attention interface and many small operations. Here the layers are one loop over copies of their weights,
in a layout that is fast for few tokens. All other decoders run transformers' own layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama as llama

from slmrec.models.layers import NoTokens
from slmrec.models.packed.attention import AttentionSettings, KeysValues
from slmrec.models.packed.masks import AttentionPattern, NewestTokenAttention, PackedAttention

MAX_WEIGHTS = 2**25
"""Largest number of weights that are copied, 128 MiB; the time of larger decoders is that of their products."""
_PLAIN_MODULES = {
    llama.LlamaModel,
    llama.LlamaDecoderLayer,
    llama.LlamaAttention,
    llama.LlamaMLP,
    llama.LlamaRMSNorm,
    llama.LlamaRotaryEmbedding,
    nn.ModuleList,
    nn.Linear,
    nn.Embedding,
    NoTokens,
}
_STATIC_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose angles do not depend on the longest position of a call."""


def can_fuse(decoder: PreTrainedModel) -> bool:
    """Return whether a decoder is a small float32 LLaMA on a CPU, without adapters, quantised layers or biases."""
    modules = decoder.named_modules()
    if any(type(module) not in _PLAIN_MODULES and not name.endswith(".mlp.act_fn") for name, module in modules):
        return False
    weights = dict(decoder.named_parameters())
    return (
        decoder.rotary_emb.rope_type in _STATIC_ROPE_TYPES
        and sum(weight.numel() for weight in weights.values()) <= MAX_WEIGHTS
        and all(weight.is_cpu and weight.dtype == torch.float32 for weight in weights.values())
        and not any(name.endswith(".bias") for name in weights)
    )


class FusedLlama:
    """Layers and final norm of a decoder for which `can_fuse` is true, with copies of its weights.

    The outputs agree with those of the decoder up to rounding. Construct and run it without gradients.

    Args:
        decoder: The LLaMA.
        num_positions: Number of positions of the longest sequence.
    """

    def __init__(self, decoder: PreTrainedModel, num_positions: int) -> None:
        self._layers = [_Layer.copy_of(layer) for layer in decoder.layers]
        self._final_norm, self._final_scale = _UnscaledNorm.of(decoder.norm), _UnscaledNorm.scale(decoder.norm)
        self._rotations = _rotations(decoder, num_positions)

    def run(self, states: Tensor, position_ids: Tensor, pattern: AttentionPattern) -> Tensor:
        """Return the output (tokens, H) of the decoder after its final norm.

        Args:
            states: (tokens, H) input vectors of the first layer.
            position_ids: (tokens,) positions.
            pattern: Attention pattern of the sequence. If it names the newest tokens, the last layer runs for these
                only, and the output is (B, H).
        """
        rotation = _Rotation(*self._rotations.index_select(0, position_ids).unbind(1))
        packed = pattern if isinstance(pattern, PackedAttention) else None
        newest = None if packed is None else packed.newest_tokens
        for index, layer in enumerate(self._layers):
            normed = layer.attention_norm(states)
            if packed is None or newest is None or layer is not self._layers[-1]:
                query, own = layer.query_keys_values(normed, rotation)
            else:
                own = layer.keys_values(normed, rotation)
                states, pattern = states[newest], NewestTokenAttention(packed, own)
                query = layer.query(normed[newest], _Rotation(*(part[newest] for part in rotation)))
            attended = pattern.attend(index, query, own, layer.settings)
            states = torch.addmm(states, attended.flatten(1), layer.out)
            states = torch.addmm(states, layer.gated(layer.mlp_norm(states)), layer.down)
        return self._final_norm(states) * self._final_scale


class _Rotation(NamedTuple):
    """Rotary embedding of some tokens."""

    cosine: Tensor
    """(tokens, 1, head width)."""
    sine: Tensor
    """(tokens, 1, head width), negative in the first half."""

    def apply(self, heads: Tensor) -> Tensor:
        """Return heads (tokens, heads, head width) rotated to their positions."""
        swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
        return torch.addcmul(heads * self.cosine, swapped, self.sine)


class _UnscaledNorm(NamedTuple):
    """RMS norm without its scale, which is folded into the following matrix.

    x / sqrt(mean(x^2) + e) equals sqrt(H) times x / sqrt(sum(x^2) + H e), which takes three operations.
    """

    floor: Tensor
    """(1,) sqrt(H e)."""

    @classmethod
    def of(cls, norm: Any) -> "_UnscaledNorm":
        return cls(norm.weight.new_tensor([len(norm.weight) * norm.variance_epsilon]).sqrt())

    def __call__(self, states: Tensor) -> Tensor:
        return states / torch.hypot(torch.linalg.vector_norm(states, dim=1, keepdim=True), self.floor)

    @staticmethod
    def scale(norm: Any) -> Tensor:
        """Return the scale (H,) to multiply the output with."""
        scale: Tensor = norm.weight * len(norm.weight) ** 0.5
        return scale


class _Layer(NamedTuple):
    """Weights of a layer as (in, out) matrices, which are fast for one token; maps of the same input are joined."""

    attention_norm: _UnscaledNorm
    query_key_value: Tensor
    out: Tensor
    mlp_norm: _UnscaledNorm
    gate_up: Tensor
    down: Tensor
    activation: Callable[[Tensor], Tensor]
    settings: AttentionSettings
    num_heads: int
    num_key_heads: int
    head_width: int

    @classmethod
    def copy_of(cls, layer: Any) -> "_Layer":
        """Copy the weights of one of transformers' layers."""
        attention, mlp, width = layer.self_attn, layer.mlp, layer.self_attn.head_dim
        return cls(
            _UnscaledNorm.of(layer.input_layernorm),
            _joined(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj.weight.T.clone(memory_format=torch.contiguous_format),
            _UnscaledNorm.of(layer.post_attention_layernorm),
            _joined(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj),
            mlp.down_proj.weight.T.clone(memory_format=torch.contiguous_format),
            mlp.act_fn,
            AttentionSettings(attention.scaling, None, 0.0, use_fused_kernel=True),
            attention.q_proj.out_features // width,
            attention.k_proj.out_features // width,
            width,
        )

    def query_keys_values(self, normed: Tensor, rotation: _Rotation) -> tuple[Tensor, KeysValues]:
        """Return queries (tokens, heads, head width), and keys and values."""
        heads = torch.mm(normed, self.query_key_value).view(len(normed), -1, self.head_width)
        rotated = rotation.apply(heads[:, : -self.num_key_heads])
        keys, values = rotated[:, self.num_heads :], heads[:, -self.num_key_heads :]
        return rotated[:, : self.num_heads], KeysValues(keys, values)

    def query(self, normed: Tensor, rotation: _Rotation) -> Tensor:
        """Return the queries only."""
        weights = self.query_key_value[:, : self.num_heads * self.head_width]
        return rotation.apply(torch.mm(normed, weights).view(len(normed), -1, self.head_width))

    def keys_values(self, normed: Tensor, rotation: _Rotation) -> KeysValues:
        """Return the keys and values only."""
        weights = self.query_key_value[:, self.num_heads * self.head_width :]
        keys, values = torch.mm(normed, weights).view(len(normed), -1, self.head_width).chunk(2, dim=1)
        return KeysValues(rotation.apply(keys), values)

    def gated(self, normed: Tensor) -> Tensor:
        """Return the input (tokens, MLP width) of the down projection."""
        gate, up = torch.mm(normed, self.gate_up).chunk(2, dim=1)
        return self.activation(gate) * up


def _joined(norm: Any, *maps: nn.Linear) -> Tensor:
    """Return one (H, out) matrix of maps with the same input, multiplied with the scale of the norm before them."""
    return (torch.cat([one.weight for one in maps]) * _UnscaledNorm.scale(norm)).T.contiguous()


def _rotations(decoder: PreTrainedModel, num_positions: int) -> Tensor:
    """Return (positions, 2, 1, head width): cosines, and sines that are negative in the first half."""
    cosine, sine = decoder.rotary_emb(torch.zeros(1, dtype=torch.float32), torch.arange(num_positions)[None])
    first, second = sine[0].chunk(2, dim=-1)
    return torch.stack([cosine[0], torch.cat([-first, second], dim=-1)], dim=1)[:, :, None]
