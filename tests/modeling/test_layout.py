"""Slots and positions, written out."""

import torch

from gitllm_plugin.modeling import layout as layout_module
from gitllm_plugin.modeling.layout import lay_out

IMAGE = torch.tensor([[1, 1], [1, 0]]).bool()
TEXT = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def test_training_rows_have_padding_behind():
    layout = lay_out(IMAGE, TEXT)
    assert layout.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert layout.text_position_ids.tolist() == [[0, 0, 0, 1], [0, 0, 1, 2]]
    assert layout.rule.prefix_end.tolist() == [2, 1]


def test_generation_rows_end_together():
    layout = lay_out(IMAGE, torch.tensor([[1, 1, 0], [0, 0, 1]]).bool(), align="right")
    assert layout.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert layout.rule.prefix_end.tolist() == [2, 3]


def test_blocks_keep_image_and_text_apart():
    layout = lay_out(IMAGE, torch.tensor([[1, 1, 0], [0, 0, 1]]).bool(), align="blocks")
    assert layout.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 0, 1]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert layout.rule.prefix_end.tolist() == [2, 2]


def test_texts_stand_one_after_another_behind_their_image():
    texts = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    layout = lay_out(IMAGE, texts, torch.tensor([0, 1, 0]), share_rows=True)
    assert layout.attention_mask.tolist() == [[1] * 9]
    assert layout.position_ids[0].tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1]
    assert layout.text_position_ids[0].tolist() == [0, 0, 0, 1, 0, 1, 2, 0, 0]
    text_ids, image_ids = layout.rule.shared
    assert text_ids.tolist() == [[-1, -1, 0, 0, 2, 2, 2, -1, 1]]
    assert image_ids.tolist() == [[0] * 7 + [1, 1]]


def test_rows_end_where_the_next_group_does_not_fit(monkeypatch):
    monkeypatch.setattr(layout_module, "ROW", 5)
    images = torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    texts = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 1]]).bool()
    layout = lay_out(images, texts, share_rows=True)
    assert layout.attention_mask.tolist() == [[1] * 5, [1] * 5]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    text_ids, image_ids = layout.rule.shared
    assert text_ids.tolist() == [[-1, -1, 2, 2, 2], [-1, -1, 0, -1, 1]]
    assert image_ids.tolist() == [[2] * 5, [0, 0, 0, 1, 1]]


def test_rows_of_groups_hold_every_token_once_and_little_padding():
    generator = torch.Generator().manual_seed(0)
    images = torch.ones(40, 9).bool()
    lengths = torch.randint(3, 30, (60,), generator=generator)
    texts = torch.arange(30)[None] < lengths[:, None]
    index = torch.randint(0, 40, (60,), generator=generator)
    layout = lay_out(images, texts, index, share_rows=True)
    assert layout.attention_mask.sum() == images.sum() + texts.sum()
    slots = torch.cat([layout.image_slots, layout.text_slots])
    assert len(slots.unique()) == len(slots) == layout.attention_mask.sum()
    filled = layout.attention_mask.sum(1)
    assert (filled[:-1] > 0.8 * layout_module.ROW).all(), "only the last row may be less than full by more than a group"


def test_way_back_is_the_inverse_and_leaves_zeros_on_padding():
    layout = lay_out(IMAGE, TEXT)
    values = torch.arange(1.0, 7).view(2, 3, 1)
    rows = layout.place_text(torch.zeros(2, 4, 1), values)
    assert torch.equal(layout.text_of(rows), values * TEXT[..., None])
