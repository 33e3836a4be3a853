"""Where messages have their pictures."""

import pytest

from gitllm_plugin.hf.messages import read_question


@pytest.mark.parametrize("path", ["httpd/cat.png", "https.jpg", "http_pictures/1.webp"])
def test_a_path_that_begins_like_an_address_is_a_path(path):
    part = {"type": "image", "path": path}
    question = read_question([{"role": "user", "content": [part, {"type": "text", "text": "what is it?"}]}])
    assert question.pictures == (path,)
