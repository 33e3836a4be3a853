"""Batches of items with one, several and no images."""

import torch

from gitllm_plugin.datasets.collate import TEXT_KEYS, collate_groups


def make_item(key: str, frames: int, texts: int = 1, value: float = 1.0) -> dict:
    image = None if frames == 0 else torch.full((3, 2, 2) if frames == 1 else (frames, 3, 2, 2), value)
    return {
        "image": image,
        "texts": [{name: f"{key}.{name}.{text}" for name in TEXT_KEYS} for text in range(texts)],
    }


def test_one_image_each():
    batch = collate_groups([make_item("a", 1, value=1), make_item("b", 1, value=2)])
    assert batch["image"].shape == (2, 3, 2, 2)
    assert batch["image"][:, 0, 0, 0].tolist() == [1, 2]
    assert batch["image_index"].tolist() == [0, 1]
    assert batch["image_index"].dtype == torch.int64
    assert "num_images" not in batch
    assert batch["text_input"] == ["a.text_input.0", "b.text_input.0"]


def test_texts_of_an_item_share_its_pixels():
    batch = collate_groups([make_item("a", 1, texts=2), make_item("b", 1)])
    assert batch["image"].shape == (2, 3, 2, 2)
    assert batch["image_index"].tolist() == [0, 0, 1]
    assert batch["instance_id"] == ["a.instance_id.0", "a.instance_id.1", "b.instance_id.0"]


def test_equal_numbers_of_frames():
    batch = collate_groups([make_item("a", 2), make_item("b", 2)])
    assert batch["image"].shape == (2, 2, 3, 2, 2)
    assert "num_images" not in batch


def test_frames_are_padded_with_zeros_and_counted():
    batch = collate_groups([make_item("a", 1, value=1), make_item("b", 3, value=2), make_item("", 0)])
    assert batch["image"].shape == (3, 3, 3, 2, 2)
    assert batch["num_images"].tolist() == [1, 3, 0]
    assert batch["image"][:, :, 0, 0, 0].tolist() == [[1, 0, 0], [2, 2, 2], [0, 0, 0]]


def test_some_texts_without_image():
    batch = collate_groups([make_item("", 0), make_item("a", 1), make_item("", 0)])
    assert batch["image"].shape == (3, 3, 2, 2)
    assert batch["num_images"].tolist() == [0, 1, 0]
    assert batch["image_index"].tolist() == [0, 1, 2]


def test_no_image_at_all():
    batch = collate_groups([make_item("", 0), make_item("", 0)])
    assert batch["image"] is None
    assert "num_images" not in batch
    assert batch["image_index"].tolist() == [0, 1]
