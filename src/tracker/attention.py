"""Multi-head attention that runs with any number of heads.

`nn.MultiheadAttention` computes the width of a head from the width of the model, so it cannot lose one. A module of
this class, which is given to it when its heads are removed, has the same parameters and computes the same, with the
heads and their width taken from its own attributes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class HeadwiseAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with `num_heads` heads of `head_dim` channels, whatever the width of the model.

    Attention as in Vaswani et al., "Attention Is All You Need" (2017), 3.2. Inputs, masks and results are those of
    `nn.MultiheadAttention.forward`.
    """

    # Tells nn.TransformerEncoderLayer that its fused kernel, which splits the width evenly, is not for this module.
    _qkv_same_embed_dim = property(lambda self: False, lambda self, value: None)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The attended values (…, length, width) and, if asked for, the attention weights (…, length, sources)."""
        batched = query.dim() == 3
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._heads(query, key, value)
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout) if dropout else weights
            attended = weights @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        joined = attended.transpose(1, 2).reshape(-1, self.num_heads * self.head_dim)
        out = functional.linear(joined, self.out_proj.weight, self.out_proj.bias)
        out = out.view(query.shape[0], query.shape[1], -1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> list[Tensor]:
        """Query, key and value of every head: (batch, heads, length, head_dim)."""
        packed = self._parameters["in_proj_weight"]  # None where the three are kept apart
        separate = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        weights: Any = separate if packed is None else packed.chunk(3)
        bias = self._parameters["in_proj_bias"]
        biases: Any = (None,) * 3 if bias is None else bias.chunk(3)
        projected = [functional.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]
        if self.bias_k is not None and self.bias_v is not None:
            for i, extra in ((1, self.bias_k), (2, self.bias_v)):
                projected[i] = torch.cat([projected[i], extra.repeat(projected[i].shape[0], 1, 1)], dim=1)
        heads = [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in projected]
        if self.add_zero_attn:
            heads[1:] = [functional.pad(x, (0, 0, 0, 1)) for x in heads[1:]]
        return heads

    def _mask(self, query: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores: (batch or 1, heads or 1, length, sources)."""
        extra = (self.bias_k is not None) + int(self.add_zero_attn)
        parts = []
        if mask is not None:
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask[None, None]
            parts.append(mask)
        if padding is not None:
            parts.append(padding[:, None, None, :])
        added = [functional.pad(_as_scores(part, query.dtype), (0, extra)) for part in parts]
        return sum(added[1:], added[0]) if added else None


def _as_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that says what is left out as one that is added."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    return mask.to(dtype)


def let_follow(module: nn.Module) -> None:
    """Give a module that cannot lose its neurons the class that can."""
    if type(module) is nn.MultiheadAttention:
        module.__class__ = HeadwiseAttention
