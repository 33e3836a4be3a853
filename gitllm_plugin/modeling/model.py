"""GIT-LLM: image encoder, one projection, and a causal language model that reads the image as a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gitllm_plugin.config.model import AttentionKind, ProjectionKind
from gitllm_plugin.errors import DataError
from gitllm_plugin.modeling.attention_map import attention_to_image
from gitllm_plugin.modeling.decoder import Decoder
from gitllm_plugin.modeling.families import Family
from gitllm_plugin.modeling.folder import InFolder
from gitllm_plugin.modeling.frozen_linear import use_fast_products
from gitllm_plugin.modeling.hidden_states import Depth, hidden_states
from gitllm_plugin.modeling.loss import GitLLMOutput
from gitllm_plugin.modeling.marks import marks_of
from gitllm_plugin.modeling.pixels import are_features
from gitllm_plugin.modeling.places import MOST_TILES, places_of
from gitllm_plugin.modeling.preference import log_likelihoods
from gitllm_plugin.modeling.projection import Projection
from gitllm_plugin.modeling.ranking import Candidates, CandidateScores, score_candidates
from gitllm_plugin.modeling.transfer import to_device, to_host
from gitllm_plugin.modeling.vision import ImageEncoder


class GitLLM(InFolder):
    """Image encoder + projection + causal LLM under GIT's attention rule.

    Args:
        image_encoder: gives ``[n, P, vision_dim]``.
        language_model: a causal LM of transformers.
        max_images: most images (or video frames) of one text. Above 1, each place has a learned temporal
            embedding, zero at the start, added before the projection (GIT, section 3.1); an image that comes
            without a place (``[U, 3, H, W]``) gets none.
        family: facts about the language model, see :class:`~gitllm_plugin.modeling.decoder.Decoder`.
        attention: see :class:`~gitllm_plugin.modeling.decoder.Decoder`.
        tile_marks: whether tiles of a picture have learned embeddings of their row and column, zero at the start, added
            as those of places are; a whole picture has one of its own.
        projection, projection_factor: kind and factor, see :class:`~gitllm_plugin.modeling.projection.Projection`.

    Attributes:
        language_model: as given; another may be assigned (a compiled one, PEFT's, a copy).
        decoder: ``language_model`` as GIT uses it; what fits into a row, and what serving needs, is asked of it.
        sources: the names that ``language_model`` and ``image_encoder`` were loaded by, as far as they are known.
        untrained: modules (``proj``, ``lora``) that were drawn at random, and neither loaded nor trained since.

    Raises:
        ConfigError: the language model's family is not in the table and none is given.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        language_model: PreTrainedModel,
        max_images: int = 1,
        family: Family | None = None,
        projection: ProjectionKind = "linear_norm",
        projection_factor: int = 2,
        attention: AttentionKind = "git",
        tile_marks: bool = False,
    ) -> None:
        super().__init__()
        self.sources: dict[str, str] = {}
        self.untrained = {"proj"}
        self.image_encoder = image_encoder
        self.language_model = language_model
        self.decoder = Decoder(language_model, family, attention)
        for part in (image_encoder, language_model):
            use_fast_products(part)
        self.projection = Projection(
            image_encoder.vision_dim,
            language_model.config.hidden_size,
            image_encoder.layer_norm_eps,
            projection,
            projection_factor,
        )
        self.temporal_embedding = (
            nn.Parameter(torch.zeros(max_images, 1, image_encoder.vision_dim)) if max_images > 1 else None
        )
        self.tile_embedding = (
            nn.Parameter(torch.zeros(2, MOST_TILES + 1, 1, image_encoder.vision_dim)) if tile_marks else None
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; with another language model goes a decoder of it, by the same family where it is one."""
        # Else the old one would go on computing, while checkpoints and parameters are those of the new one.
        if name == "language_model" and "decoder" in self.__dict__:
            same = value.config.model_type == self.language_model.config.model_type
            self.decoder = Decoder(value, self.decoder.family if same else None, self.decoder.attention)
        super().__setattr__(name, value)

    @property
    def max_images(self) -> int:
        """Most images of one text; a picture in tiles counts as one."""
        return 1 if self.temporal_embedding is None else self.temporal_embedding.shape[0]

    @property
    def tile_marks(self) -> bool:
        """Whether tiles have marks of their row and column."""
        return self.tile_embedding is not None

    @property
    def made_of(self) -> dict[str, Any]:
        """Arguments of this class besides its parts."""
        return {
            "max_images": self.max_images,
            "tile_marks": self.tile_marks,
            "projection": self.projection.kind,
            "projection_factor": self.projection.factor,
            "attention": self.decoder.attention,
        }

    def max_text_tokens(self, pixel_values: Tensor | None) -> int | None:
        """Give the most tokens of a text behind images of this shape, answer included; None where nothing limits it.

        Args:
            pixel_values: as for :meth:`encode_images`, or None for text alone.
        """
        # Learned positions belong to text: an image takes none of them.
        longest = self.decoder.longest_row
        if longest is None or pixel_values is None or self.decoder.positions == "text":
            return longest
        frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        return longest - frames * self.tokens_of_image(pixel_values)

    def tokens_of_image(self, pixel_values: Tensor) -> int:
        """Count the tokens of each image, or frame, of this shape; see :meth:`encode_images`."""
        height, width = pixel_values.shape[-2:]
        if are_features(pixel_values):
            return self.projection.num_tokens(height, self._grid_of(pixel_values))
        return self.num_image_tokens(height, width)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Count the tokens that the language model reads of an image of this size.

        Raises:
            ConfigError: the image encoder or the projection does not take images of this size.
        """
        grid = self.image_encoder.grid_shape(height, width) if self.projection.merges else None
        return self.projection.num_tokens(self.image_encoder.num_tokens(height, width), grid)

    def grid_shape(self, height: int, width: int) -> tuple[int, int]:
        """Count rows and columns of tokens of an image of this size, the last of its tokens, row by row."""
        return self.projection.grid_shape(self.image_encoder.grid_shape(height, width))

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of a size that the encoder or the projection does not take.

        Raises:
            ConfigError: naming both sizes.
        """
        self.image_encoder.check_size(height, width)
        if self.projection.merges:
            self.grid_shape(height, width)

    def encode_images(self, pixel_values: Tensor, num_images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn images into vectors of the language model's width.

        Args:
            pixel_values: ``[U, 3, H, W]``, or ``[U, F, 3, H, W]`` for images that have places; features that were
                computed before as images of one channel, see :mod:`~gitllm_plugin.modeling.pixels`.
            num_images: long ``[U]``, how many of the F images of each entry are real; None: all. Of pictures in tiles
                which tile each image is, long ``[U, F, 3]``, see :mod:`~gitllm_plugin.modeling.places`. Best on the
                host.

        Returns:
            ``image_embeds [U, F*P, llm_dim]``, and ``image_valid``, bool ``[U, F*P]``, on the host or where
            ``num_images`` is; P is an image's tokens.

        Raises:
            DataError: more images than the model was built for.
        """
        have_places = pixel_values.ndim == 5
        if not have_places:
            pixel_values = pixel_values[:, None]
        entries, frames = pixel_values.shape[:2]
        in_tiles = num_images is not None and num_images.ndim == 3
        places = places_of(to_host(num_images)[0] if in_tiles else num_images, entries, frames)
        pictures = int(places[:, :, 0].max()) + 1 if in_tiles else frames
        if pictures > self.max_images:
            raise DataError(
                f"{pictures} images (or frames) for one text, but this model was built for {self.max_images}: "
                f"set model.max_images to {pictures} or more, or give fewer"
            )
        images, valid = pixel_values.flatten(0, 1), places[:, :, 0] >= 0
        places, real = places.flatten(0, 1), None
        # What fills a batch up is not encoded; what is known on a device alone would have to be waited for.
        if valid.device.type == "cpu" and not torch.compiler.is_compiling() and valid.any() and not valid.all():
            real = valid.flatten().nonzero()[:, 0]
            places, real = to_device((places[real], real), images.device)
            images = images[real]
        features = self._marked(self.image_encoder(images), places, have_places)
        image_embeds = self.projection(features, self._grid_of(images))
        tokens = image_embeds.shape[1]
        if real is not None:
            filled = image_embeds.new_zeros(entries * frames, *image_embeds.shape[1:])
            image_embeds = filled.index_copy(0, real, image_embeds)
        return image_embeds.view(entries, frames * tokens, -1), valid.repeat_interleave(tokens, 1)

    def _marked(self, features: Tensor, places: Tensor, have_places: bool) -> Tensor:
        """Add to features ``[n, P, vision_dim]`` what says where their images stand, by places ``[n, 3]``."""
        places = to_device(places.clamp(min=0), features.device)
        # An image without a place is a picture of its own and no frame of a video.
        if have_places and self.temporal_embedding is not None:
            features = features + self.temporal_embedding[places[:, 0]].to(features.dtype)
        if self.tile_embedding is not None:
            marks = self.tile_embedding[0][places[:, 1]] + self.tile_embedding[1][places[:, 2]]
            features = features + marks.to(features.dtype)
        return features

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        num_images: Tensor | None = None,
        weights: Tensor | None = None,
        logits: Literal["all", "none"] = "all",
        image_marks: Tensor | None = None,
    ) -> GitLLMOutput:
        """Score texts about images.

        All arguments but ``pixel_values`` say who stands where, and are best on the host: the model sends what it needs
        to its device. What is given on a device is read back, in one transfer that waits for what is computed there.

        Args:
            input_ids: long ``[N, T]``, padded on either side.
            attention_mask: ``[N, T]``, 1 on real tokens; None: all are.
            pixel_values: ``[U, 3, H, W]``, ``[U, F, 3, H, W]``, or None for text alone.
            labels: long ``[N, T]``, token ids, ``-100`` where a token is not trained on. The first text token
                is never predicted from the image. By ``attention: prompt`` what stands in front of the first label
                is the prompt, and all where there are none.
            image_index: long ``[N]``, the image that each text reads; None: text n reads image n (U = N).
                Texts of one image share its encoding and, where the family allows, its prefix; loss and
                gradients are those of separate rows.
            num_images: long ``[U]``, see :meth:`encode_images`.
            weights: float ``[N]``, how much each text's tokens count in the loss; None: all the same.
            logits: "none" computes logits at supervised positions only, for the loss.
            image_marks: long ``[N, K]``, how many tokens of its text stand in front of each picture of a text, in the
                pictures' order; -1: it is not read. None: all pictures are in front.

        Returns:
            Loss (with labels) and logits.

        Raises:
            DataError: image and text are longer than the context.
        """
        if labels is not None and self.training and torch.is_grad_enabled():
            self.untrained.clear()  # by whatever loop
        image_embeds, image_valid = self._image_or_nothing(input_ids, pixel_values, num_images)
        return self.decoder.forward(
            image_embeds,
            image_valid,
            input_ids,
            attention_mask,
            labels,
            image_index=image_index,
            weights=weights,
            logits=logits,
            marks=marks_of(image_marks, num_images, pixel_values, image_valid),
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        num_images: Tensor | None = None,
        image_marks: Tensor | None = None,
        **generation_kwargs: Any,
    ) -> Any:
        """Continue prompts about images, through the language model's own ``generate``.

        Args:
            input_ids, attention_mask, pixel_values, image_index, num_images, image_marks: as in :meth:`forward`. An
                image that several prompts read is encoded once and, where the family allows, prefilled once.
            **generation_kwargs: arguments of transformers' ``generate`` by name (``max_new_tokens``,
                ``num_beams``, ``do_sample``, ``return_dict_in_generate``, ...). With
                ``cache_implementation="static"``, which transformers compiles on a GPU, each prompt is prefilled
                with its image, and the image encoded once.

        Returns:
            New token ids ``[N, L]`` (the prompt is not repeated), or transformers' output object.

        Raises:
            DataError: image and prompt are longer than the context.
        """
        image_embeds, image_valid = self._image_or_nothing(input_ids, pixel_values, num_images)
        marks = marks_of(image_marks, num_images, pixel_values, image_valid)
        where: dict[str, Any] = {"image_index": image_index, "marks": marks}
        return self.decoder.generate(image_embeds, image_valid, input_ids, attention_mask, **where, **generation_kwargs)

    @torch.no_grad()
    def score_candidates(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        candidates: Sequence[Candidates],
        num_images: Tensor | None = None,
        image_marks: Tensor | None = None,
        **kwargs: Any,
    ) -> CandidateScores:
        """Compute how likely answers are, see :func:`gitllm_plugin.modeling.ranking.score_candidates`.

        Args:
            input_ids, attention_mask, pixel_values, num_images, image_marks: as in :meth:`forward`.
            candidates: N lists of lists of token ids.
            **kwargs: further arguments of that function (``image_index``, ``mean``, ``shortlist``, ...).
        """
        images = self._image_or_nothing(input_ids, pixel_values, num_images)
        marks = marks_of(image_marks, num_images, pixel_values, images[1])
        return score_candidates(self.decoder, *images, input_ids, attention_mask, candidates, marks=marks, **kwargs)

    def log_likelihoods(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        *,
        labels: Tensor,
        num_images: Tensor | None = None,
        image_marks: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Sum the log-probabilities of each text's labels, ``[N]``: ``preference.py:log_likelihoods``.

        Args:
            input_ids, attention_mask, pixel_values, labels, num_images, image_marks: as in :meth:`forward`.
            **kwargs: further arguments of that function (``image_index``, ``like``).
        """
        if self.training and torch.is_grad_enabled():
            self.untrained.clear()
        images = self._image_or_nothing(input_ids, pixel_values, num_images)
        marks = marks_of(image_marks, num_images, pixel_values, images[1])
        return log_likelihoods(self.decoder, *images, input_ids, attention_mask, labels, marks=marks, **kwargs)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        num_images: Tensor | None = None,
        depth: Depth = "last",
    ) -> tuple[Tensor, Tensor]:
        """Compute hidden states of images and texts: ``hidden_states.py:hidden_states``.

        Args:
            input_ids, attention_mask, pixel_values, image_index, num_images: as in :meth:`forward`.
            depth: which layer's.
        """
        images = self._image_or_nothing(input_ids, pixel_values, num_images)
        return hidden_states(self.decoder, *images, input_ids, attention_mask, image_index, depth)

    def attention_to_image(
        self, input_ids: Tensor, pixel_values: Tensor, last: int | None = None, num_images: Tensor | None = None
    ) -> Tensor:
        """Measure how much tokens of a text attend to each image token: ``attention_map.py:attention_to_image``.

        Args:
            input_ids: long ``[1, T]`` without padding.
            pixel_values: ``[1, 3, H, W]`` or ``[1, F, 3, H, W]``.
            last: for how many of the last tokens; None: for all.
            num_images: of pictures in tiles their places, as in :meth:`encode_images`.

        Returns:
            float32 ``[layers, last, F*P]`` on the CPU.
        """
        return attention_to_image(self.decoder, *self.encode_images(pixel_values, num_images), input_ids, last)

    def _grid_of(self, pixel_values: Tensor) -> tuple[int, int] | None:
        # Where each feature is a token, features of images of any shape will do.
        return self.image_encoder.grid_of(pixel_values) if self.projection.merges else None

    def _image_or_nothing(
        self, input_ids: Tensor, pixel_values: Tensor | None, num_images: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if pixel_values is not None:
            return self.encode_images(pixel_values, num_images)
        width = self.language_model.config.hidden_size
        # An image of no tokens: everything behind it is the same for text alone.
        embeds = torch.zeros(len(input_ids), 0, width, device=self.projection.weight.device)
        return embeds, torch.zeros(len(input_ids), 0, dtype=torch.bool)
