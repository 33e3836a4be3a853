"""From the image encoder's width to the language model's: Linear, then LayerNorm (GIT, section 3.1)."""

from typing import cast

from torch import Tensor, nn

from gitllm_plugin.modeling.contiguous import give_contiguous_input


class Projection(nn.Sequential):
    """``[..., vision_dim] -> [..., llm_dim]``, in the trained dtype (float32 unless cast).

    Args:
        vision_dim: width of the image features.
        llm_dim: width of the decoder's hidden states.
        eps: the LayerNorm's epsilon; the article takes the image encoder's ``layer_norm_eps``.
    """

    def __init__(self, vision_dim: int, llm_dim: int, eps: float = 1e-5) -> None:
        super().__init__(nn.Linear(vision_dim, llm_dim), nn.LayerNorm(llm_dim, eps=eps))
        give_contiguous_input(self[0])  # timm's grids come as transposed views

    @property
    def weight(self) -> Tensor:
        """The linear layer's weight ``[llm_dim, vision_dim]``."""
        return cast(nn.Linear, self[0]).weight

    def forward(self, features: Tensor) -> Tensor:
        """Project; the input is cast to the projection's dtype first (the encoder may be in bf16)."""
        return super().forward(features.to(self.weight.dtype))
