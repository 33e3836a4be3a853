"""Methods that LAVIS's models inherited from transformers 4.26, and that transformers 5 no longer has.

Each computes what that of 4.26 computed. :mod:`gitllm_plugin.host.model_repairs` gives them to LAVIS's classes, and to
no others.
"""

from typing import Any


def get_head_mask(self: Any, head_mask: Any, num_hidden_layers: int, is_attention_chunked: bool = False) -> Any:
    """Give which heads count, for every layer.

    Args:
        self: the model.
        head_mask: [heads] or [layers, heads], 1 for a head that counts; None for all.
        num_hidden_layers: how many layers there are.
        is_attention_chunked: whether a dimension is added at the end.

    Returns:
        ``[None] * num_hidden_layers``, or a tensor [layers, 1, heads, 1, 1] of the model's dtype.
    """
    if head_mask is None:
        return [None] * num_hidden_layers
    if head_mask.dim() == 1:
        head_mask = head_mask.expand(num_hidden_layers, -1)
    head_mask = head_mask[:, None, :, None, None].to(self.dtype)
    return head_mask.unsqueeze(-1) if is_attention_chunked else head_mask


def invert_attention_mask(self: Any, encoder_attention_mask: Any) -> Any:
    """Give the mask of a cross-attention, [batch, source] or [batch, target, source] of 0 and 1, as what is added.

    Returns:
        [batch, 1, 1 or target, source] of the model's dtype: 0 where a token may be attended to, else the least value.
    """
    import torch

    mask = encoder_attention_mask
    mask = mask[:, None, :, :] if mask.dim() == 3 else mask[:, None, None, :]
    return (1.0 - mask.to(self.dtype)) * torch.finfo(self.dtype).min


def get_extended_attention_mask(self: Any, attention_mask: Any, input_shape: Any, *_: Any, **__: Any) -> Any:
    """Give the mask of a self-attention as what is added, causal in a decoder.

    Args:
        self: the model.
        attention_mask: [batch, source] or [batch, target, source], 1 for what may be attended to.
        input_shape: (batch, target): the tokens that are given, without those of a cache.

    Returns:
        [batch, 1, 1 or target, source] of the model's dtype: 0 where a token may be attended to, else the least value.
    """
    import torch

    if attention_mask.dim() == 3:
        mask = attention_mask[:, None, :, :]
    elif self.config.is_decoder:
        target, source = input_shape[1], attention_mask.shape[1]
        causal = torch.ones(target, source, device=attention_mask.device).tril(source - target)
        mask = causal * attention_mask[:, None, None, :]
    else:
        mask = attention_mask[:, None, None, :]
    return (1.0 - mask.to(self.dtype)) * torch.finfo(self.dtype).min


def expand_inputs_for_generation(
    expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Repeat for every beam what transformers 4.26 repeated: LAVIS repeats the image's vectors itself.

    Today's transformers repeats every tensor, so that there would be beams times beams images.
    """

    def repeated(tensor: Any) -> Any:
        return None if tensor is None else tensor.repeat_interleave(expand_size, dim=0)

    for name in ("token_type_ids", "attention_mask"):
        if name in model_kwargs:
            model_kwargs[name] = repeated(model_kwargs[name])
    return repeated(input_ids), model_kwargs
