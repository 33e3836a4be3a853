"""Image processors for LAVIS."""

from lavis.common.registry import registry
from PIL import Image
from torch import Tensor

from gitllm_plugin.processors.picture_processor import PictureProcessor
from gitllm_plugin.processors.settings import RandomPictureSettings


@registry.register_processor("git_llm_image_eval")
class GitLLMImageEvalProcessor(PictureProcessor):
    """Makes pixel values of a picture, always the same ones. Arguments as of :class:`PictureProcessor`."""

    def __call__(self, item: Image.Image) -> Tensor:
        """Makes pixel values: float32 [3, image_size, image_size].

        Raises:
            TypeError: if the item is not a PIL image.
        """
        if not isinstance(item, Image.Image):
            raise TypeError(
                f"{type(self).__name__} takes a PIL image, got {type(item).__name__}; "
                "open files with PIL.Image.open, arrays with PIL.Image.fromarray"
            )
        return self.transform(item)


@registry.register_processor("git_llm_image_train")
class GitLLMImageTrainProcessor(GitLLMImageEvalProcessor):
    """As in evaluation, plus ``random_resized_crop`` and ``horizontal_flip``.

    Both are off by default: instructions speak of left and right, and of what a crop may cut off.
    """

    Settings = RandomPictureSettings
