"""Image processors for LAVIS."""

from lavis.common.registry import registry
from torch import Tensor

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.pictures import Picture
from gitllm_plugin.processors.picture_processor import PictureProcessor
from gitllm_plugin.processors.settings import RandomPictureSettings


@registry.register_processor("git_llm_image_eval")
class GitLLMImageEvalProcessor(PictureProcessor):
    """Make pixel values of a picture, always the same ones. Arguments as of :class:`PictureProcessor`."""

    def __call__(self, item: Picture) -> Tensor:
        """Make pixel values, float32 ``[3, image_size, image_size]``.

        Args:
            item: see :data:`~gitllm_plugin.m3it.pictures.Picture`.

        Raises:
            DataError: see :func:`~gitllm_plugin.m3it.pictures.read_pixels`.
            ConfigError: pictures are cut into tiles, of which LAVIS's data sets cannot stack different numbers.
        """
        if self.transform.max_tiles > 1:
            raise ConfigError(
                f"max_tiles is {self.transform.max_tiles}: pictures in tiles are read by this package's data sets "
                "(m3it, m3it_instruct, m3it_wds); others take one image of each"
            )
        return self.transform(item)


@registry.register_processor("git_llm_image_train")
class GitLLMImageTrainProcessor(GitLLMImageEvalProcessor):
    """As in evaluation, plus ``random_resized_crop`` and ``horizontal_flip``.

    Both are off by default: instructions speak of left and right, and of what a crop may cut off.
    """

    Settings = RandomPictureSettings
