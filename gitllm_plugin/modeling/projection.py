"""From image features to vectors of the language model's width, by several ways, and how many tokens each gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from gitllm_plugin.config.model import ProjectionKind
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.contiguous import give_contiguous_input

Grid = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """One way.

    Attributes:
        layers: from the width that is read, the width that is given and an epsilon to the layers, the first linear.
        has_norm: whether they end in a norm of their own. The others are given features behind the encoder's.
        merge: makes one token of each square of ``factor * factor`` patches, ``[..., rows, factor, columns, factor, C]
            -> [..., rows, columns, C']``; None: each feature is a token.
        keeps_all: whether a merged token is as wide as all its patches together.
    """

    layers: Callable[[int, int, float], list[nn.Module]]
    has_norm: bool = False
    merge: Callable[[Tensor], Tensor] | None = None
    keeps_all: bool = False


def _linear_norm(vision_dim: int, llm_dim: int, eps: float) -> list[nn.Module]:
    return [nn.Linear(vision_dim, llm_dim), nn.LayerNorm(llm_dim, eps=eps)]


def _linear(vision_dim: int, llm_dim: int, eps: float) -> list[nn.Module]:
    return [nn.Linear(vision_dim, llm_dim)]


def _mlp(vision_dim: int, llm_dim: int, eps: float) -> list[nn.Module]:
    return [nn.Linear(vision_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim)]


def _side_by_side(squares: Tensor) -> Tensor:
    return squares.transpose(-4, -3).flatten(-3)


def _mean(squares: Tensor) -> Tensor:
    return squares.mean((-4, -2))


KINDS: dict[ProjectionKind, Kind] = {
    "linear_norm": Kind(_linear_norm, has_norm=True),  # the article's
    "linear": Kind(_linear),  # PaliGemma's
    "mlp": Kind(_mlp),  # LLaVA-1.5's
    "pixel_shuffle": Kind(_linear, merge=_side_by_side, keeps_all=True),  # Idefics 3's, SmolVLM's, nanoVLM's
    "pool": Kind(_linear_norm, has_norm=True, merge=_mean),
}


class Projection(nn.Sequential):
    """``[..., P, vision_dim] -> [..., P', llm_dim]``, in the trained dtype (float32 unless cast).

    Args:
        vision_dim: width of the image features.
        llm_dim: width of the decoder's hidden states.
        eps: the LayerNorm's epsilon; the article takes the image encoder's ``layer_norm_eps``.
        kind: one of :data:`KINDS`: ``linear_norm``, the article's; ``linear``; ``mlp``, two linear layers with a
            GELU between them. Of these P' is P. ``pixel_shuffle`` reads ``factor * factor`` neighbours side by side,
            ``pool`` their mean; what stands in front of the patches (CLS, registers) is left out, and P' is
            ``rows * columns / factor**2``.
        factor: patches in a row of those that become one token; without effect where none do.
    """

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        eps: float = 1e-5,
        kind: ProjectionKind = "linear_norm",
        factor: int = 2,
    ) -> None:
        self.facts = KINDS[kind]
        width = vision_dim * factor**2 if self.facts.keeps_all else vision_dim
        super().__init__(*self.facts.layers(width, llm_dim, eps))
        self.kind = kind
        self.factor = 1 if self.facts.merge is None else factor
        # timm's grids come as transposed views.
        give_contiguous_input(self[0])

    @property
    def weight(self) -> Tensor:
        """The first linear layer's weight ``[llm_dim, vision_dim]``, or as wide as all patches of a token."""
        return cast(nn.Linear, self[0]).weight

    def grid_shape(self, grid: Grid) -> Grid:
        """Count rows and columns of tokens, where there are ``grid`` rows and columns of patches.

        Raises:
            ConfigError: patches that make no whole number of tokens.
        """
        rows, columns = grid
        if rows % self.factor or columns % self.factor:
            fit = ", ".join(str(n) for n in range(2, min(grid) + 1) if not rows % n and not columns % n)
            raise ConfigError(
                f"model.projection={self.kind} makes one token of {self.factor}x{self.factor} patches, and an image "
                f"has {rows}x{columns}: set model.projection_factor to one of {fit or 'none that fits'}, or another "
                "image_size"
            )
        return rows // self.factor, columns // self.factor

    @property
    def merges(self) -> bool:
        """Whether several patches become one token."""
        return self.facts.merge is not None

    def num_tokens(self, features: int, grid: Grid | None) -> int:
        """Count the tokens of an image of so many features, ``grid`` rows and columns of patches among them."""
        if not self.merges:
            return features
        assert grid is not None, "patches have rows and columns"
        rows, columns = self.grid_shape(grid)
        return rows * columns

    def forward(self, features: Tensor, grid: Grid | None = None) -> Tensor:
        """Project; the input is cast to the projection's dtype first (the encoder may be in bf16).

        Args:
            features: ``[..., P, vision_dim]``, each image's by themselves; the last ``rows * columns`` are its patches.
            grid: rows and columns of patches; read where several become one token.
        """
        features = features.to(self.weight.dtype)
        if self.facts.merge is not None:
            assert grid is not None, "patches have rows and columns"
            rows, columns = self.grid_shape(grid)
            patches = features[..., -grid[0] * grid[1] :, :]
            squares = patches.unflatten(-2, (rows, self.factor, columns, self.factor))
            features = self.facts.merge(squares).flatten(-3, -2)
        return super().forward(features)
