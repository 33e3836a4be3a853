"""Pictures and texts compared: features of both, and how likely texts are about pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lavis.models.blip_models.blip_outputs import BlipOutputFeatures
from torch import Tensor

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import move_batch
from gitllm_plugin.common.progress import Progress
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling.hidden_states import Depth
from gitllm_plugin.models.retrieval import centred_cosines, merged, pairs_of, pooled, with_rest_behind
from gitllm_plugin.models.samples import Samples, words_of

_TEXTS_AT_ONCE = 64


class ComparesTexts:
    """The part of a registered model that is compared with LAVIS's feature extractors and retrieval models.

    GIT-LLM was trained to write and not to compare: its likelihoods rank well, and its features, means over tokens of
    the language model's states in the middle layer, choose what is worth ranking.
    """

    model: Any
    text_encoder: Any
    prompt: str
    temp = 1.0
    """What LAVIS's examples divide cosines by; nothing was learnt here that would make them sharper."""

    @torch.no_grad()
    def extract_features(self: Any, samples: Samples, mode: str = "multimodal") -> BlipOutputFeatures:
        """Features as of LAVIS's ``blip_feature_extractor``.

        Args:
            samples: ``image [B, 3, H, W]`` (or videos), and ``text_input``, B texts, as the mode needs them.
            mode: ``image``, ``text`` or ``multimodal``.

        Returns:
            ``image``: ``image_embeds [B, P, D]``, the vectors that the language model reads, and
            ``image_embeds_proj [B, 1, D]``, of length 1; ``text``: ``text_embeds [B, T, D]``, its last hidden states of
            the texts alone, and ``text_embeds_proj [B, 1, D]``; ``multimodal``: ``image_embeds``, and
            ``multimodal_embeds [B, T, D]``, those of the texts behind their images. Texts have zeros behind their end.

        Raises:
            ConfigError: another mode.
            DataError: what the mode needs is not there.
        """
        if mode not in ("image", "text", "multimodal"):
            raise ConfigError(f"mode is {mode!r}; it may be 'image', 'text' or 'multimodal'")
        if mode != "text" and self._pixels(samples) is None:
            raise DataError(f"mode {mode!r} needs images: give samples['image']")
        if mode != "image" and samples.get("text_input") is None:
            raise DataError(f"mode {mode!r} needs texts: give samples['text_input']")
        if mode == "image":
            vectors = self._image_features(samples)[:, None]
            return BlipOutputFeatures(image_embeds=self._image_embeds(samples), image_embeds_proj=vectors)
        texts = _captions(samples, None)
        ids, mask = self._encoded(texts)
        if mode == "text":
            vectors = self._text_features(texts)[:, None]
            return BlipOutputFeatures(text_embeds=self._states(ids, mask, None, "last")[1], text_embeds_proj=vectors)
        states = self._states(ids, mask, samples, "last")[1]
        return BlipOutputFeatures(image_embeds=self._image_embeds(samples), multimodal_embeds=states)

    @torch.no_grad()
    def compute_itc(self: Any, samples: Samples, captions: Sequence[str] | None = None) -> Tensor:
        """Cosines of features of all pictures with those of all captions, float32 ``[U, C]``.

        Args:
            samples: ``image``, and ``text_input`` where no captions are given.
            captions: any number; None: the batch's ``text_input``.
        """
        texts = _captions(samples, captions)
        return self._image_features(samples) @ self._text_features(texts).T

    @torch.no_grad()
    def compute_itm(self: Any, samples: Samples, captions: Sequence[str] | None = None) -> Tensor:
        """How likely each caption is about each picture, behind the model's prompt, float32 ``[U, C]``.

        Log-probabilities, of which ``model.rank_by`` says whether they are sums over tokens or means.

        Args:
            samples: ``image``, and ``text_input`` where no captions are given; ``prompt`` in the place of the model's.
            captions: any number; None: the batch's ``text_input``.
        """
        texts = _captions(samples, captions)
        asked = {key: value for key, value in samples.items() if key != "text_input"}
        count = len(self._pixels(samples))
        return torch.stack(self.score_answers(asked, [texts] * count).log_likelihood)

    @torch.no_grad()
    def compute_sim_matrix(self: Any, data_loader: Any, task_cfg: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all texts of a retrieval data set about all its pictures, as LAVIS's task ``retrieval`` asks.

        Args:
            data_loader: of a split, whose data set has ``text``, a list of captions, and gives ``image`` (or
                ``video``) and ``index``; every rank may have all of it or its part.
            task_cfg: ``k_test``: for each picture, and for each text, only so many of the other are scored by
                likelihood, the nearest by features; all others stand behind them in the order of features. None or 0:
                all are scored.

        Returns:
            float32 ``[pictures, texts]`` and ``[texts, pictures]``.

        Raises:
            DataError: a picture of the data set is in no batch of any rank.
        """
        texts = words_of(data_loader.dataset.text)
        shortlist = int((task_cfg or {}).get("k_test") or 0)
        chosen = cosines = None
        if 0 < shortlist < max(len(texts), len(data_loader.dataset)):
            text_features = self._text_features(texts).cpu()
            images = self._of_all(data_loader, "features", lambda batch: self._image_features(batch).cpu())
            cosines = centred_cosines(images, text_features)
            chosen = pairs_of(cosines, shortlist)

        def score(batch: Mapping[str, Any]) -> Tensor:
            rows = torch.full((len(batch["index"]), len(texts)), -torch.inf)
            every = list(range(len(texts)))
            places = [every if chosen is None else chosen[int(i)].nonzero()[:, 0].tolist() for i in batch["index"]]
            lists = [[texts[place] for place in each] for each in places]
            asked = {key: value for key, value in batch.items() if key in ("image", "video", "image_mean", "image_std")}
            found = self.score_answers({**asked, "prompt": self.prompt}, lists).log_likelihood
            for row, each, scores in zip(rows, places, found, strict=True):
                row[each] = scores
            return rows

        scores = self._of_all(data_loader, "retrieval", score)
        if cosines is not None:
            scores = with_rest_behind(scores, cosines)
        return scores.numpy(), scores.T.numpy()

    def _of_all(self: Any, data_loader: Any, what: str, compute: Any) -> Tensor:
        """Compute a row a picture, of all ranks' batches, in the order of the data set."""
        own: dict[int, Tensor] = {}
        with Progress(what, len(data_loader)) as progress:
            for batch in data_loader:
                rows = compute(move_batch(batch, self, self.device))
                own |= dict(zip(map(int, batch["index"]), rows, strict=True))
                progress.update(samples=len(rows))
        return merged(ranks.gather_objects(own), len(data_loader.dataset))

    def _image_embeds(self: Any, samples: Samples) -> Tensor:
        images = self._images(samples)
        return self.model.encode_images(images["pixel_values"], images["num_images"])[0]

    def _image_features(self: Any, samples: Samples) -> Tensor:
        # Images do not see texts: any token does for one.
        ids = torch.zeros(len(self._pixels(samples)), 1, dtype=torch.long, device=self.device)
        states = self._states(ids, None, {**samples, "image_index": None}, "middle")[0]
        return pooled(states, states.abs().amax(-1) > 0)

    def _text_features(self: Any, texts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            ids, mask = self._encoded(texts[start : start + _TEXTS_AT_ONCE])
            parts.append(pooled(self._states(ids, mask, None, "middle")[1], mask))
        return torch.cat(parts)

    def _states(
        self: Any, ids: Tensor, mask: Tensor | None, samples: Samples | None, depth: Depth
    ) -> tuple[Tensor, Tensor]:
        images = {} if samples is None else self._images(samples)
        return self.model.hidden_states(ids, mask, **images, depth=depth)

    def _encoded(self: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode texts as they are scored, without what ends them: ids and mask ``[N, T]``."""
        prompts = [self.prompt] * len(texts)
        found = [members[0] for members in self.text_encoder.candidates(prompts, [[t] for t in texts], end=False)]
        room = self.model.max_text_tokens(None)
        found = [list(ids)[:room] or [0] for ids in found]
        width = max(map(len, found))
        rows = torch.tensor([ids + [0] * (width - len(ids)) for ids in found], device=self.device)
        lengths = torch.tensor([len(ids) for ids in found], device=self.device)
        return rows, (torch.arange(width, device=self.device) < lengths[:, None]).long()


def _captions(samples: Samples, captions: Sequence[str] | None) -> list[str]:
    given = samples.get("text_input") if captions is None else captions
    if not given:
        raise DataError("there are no captions to compare: give them, or samples['text_input']")
    return words_of([given] if isinstance(given, str) else given)
