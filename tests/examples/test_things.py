"""Rows about pictures of things: what is kept out stays out, and no question tells its answer."""

import contextlib
import json
import random
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import nn

from examples.easyvqa.errors import DemoError
from examples.things import align, data, rows, scores, sources
from examples.things.page import table
from examples.things.pictures import KINDS, read_emoji, read_person
from examples.things.rows import NEW_STYLE, TESTS, divide, test_rows, train_rows
from examples.things.scores import Score
from gitllm_plugin.modeling.pixels import normalize_pixels
from gitllm_plugin.modeling.projection import Projection

test_rows.__test__ = False
STYLES = [source.folder for source in sources.EMOJI]
DEEDS, TONES = ("cook", "pilot", "judge", "farmer"), ("light", "medium", "dark")
GROUPS = list(KINDS)


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Fewer new things and fewer pictures of several than the example has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "NUM_NEW_THINGS", 10)
        patch.setattr(rows, "NUM_COUNTED", 100)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven styles of small emoji in Iconify's form: 20 things of each group, and people."""
    root = tmp_path_factory.mktemp("things")
    groups: dict[str, list[str]] = defaultdict(list)
    for group in GROUPS:
        groups[group] = [f"{group.split()[0].lower()}x{chr(97 + n)}" for n in range(6)]
    groups["Flags"] = ["flag-nowhere"]
    people = [f"{gender}-{deed}-{tone}-skin-tone" for gender in ("man", "woman") for deed in DEEDS for tone in TONES]
    groups["People & Body"] += people
    names = [name for group in groups.values() for name in group]
    for number, style in enumerate(STYLES):
        folder = root / style / "package"
        folder.mkdir(parents=True)
        icons = {
            name: {
                "body": f'<circle cx="{4 + place % 5}" cy="8" r="{3 + number % 3}" fill="#{place * 977 % 4096:03x}"/>'
            }
            for place, name in enumerate(names)
        }
        (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 16, "height": 16}))
        (folder / "metadata.json").write_text(json.dumps({"categories": groups}))
    return root


@pytest.fixture(scope="module")
def parts(cache: Path):
    return divide(read_emoji(cache), [])


def test_what_is_kept_out_is_nowhere_in_the_training(parts) -> None:
    assert len(parts.names) == rows.NUM_NEW_THINGS
    trained = {drawing.name for drawing in parts.train}
    words = {word for name in trained for word in name.split()}
    assert not words & set(parts.names)
    assert NEW_STYLE not in {drawing.style for drawing in parts.train}
    assert {drawing.name for drawing in parts.new_renderings} <= trained
    assert "flag nowhere" not in trained


def test_a_new_combination_has_known_pairs(parts) -> None:
    trained = {drawing.person for drawing in parts.train if drawing.person}
    new = {drawing.person for drawing in parts.new_people}
    assert new and not new & trained
    for deed, gender, tone in new:
        assert any(one[:2] == (deed, gender) for one in trained)
        assert any((one[0], one[2]) == (deed, tone) for one in trained)
        assert any(one[1:] == (gender, tone) for one in trained)


@pytest.mark.parametrize("made", [train_rows, test_rows])
def test_the_text_does_not_tell_the_answer(parts, made) -> None:
    found = dict(made(parts))
    yesno = [row for _, row in found["yesno"]]
    answers = defaultdict(Counter)
    for row in yesno:
        answers[row["inputs"]][row["outputs"]] += 1
    assert all(each["yes"] == each["no"] for each in answers.values())
    counts = Counter(row["outputs"] for _, row in found["count"])
    assert len(counts) == 5 and len(set(counts.values())) == 1
    if made is test_rows:
        assert set(found) == set(TESTS)
        kinds = Counter(row["outputs"] for _, row in found["kind"])
        assert len(set(kinds.values())) == 1
        names = Counter(row["outputs"] for _, row in found["new_thing"])
        assert set(names) == set(parts.names) and set(names.values()) == {2}


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("woman-cook-medium-light-skin-tone", ("cook", "woman", "medium light")),
        ("man-police-officer-dark", ("police officer", "man", "dark")),  # as one set leaves the end out
        ("woman-in-lotus-position-medium-dark-skin-tone", ("in lotus position", "woman", "medium dark")),
        ("woman-and-man-holding-hands-dark-skin-tone", None),  # two people
        ("man-running-facing-right-light-skin-tone", None),  # "running", mirrored
        ("man-medium-light-skin-tone", None),  # nothing is done
        ("man-cook", None),
    ],
)
def test_people_are_read_from_names(name: str, person: tuple[str, str, str] | None) -> None:
    assert read_person(name) == person


def test_a_name_without_spaces_is_that_of_the_other_styles(tmp_path: Path) -> None:
    for style, name in (("noto", "red-apple"), ("fxemoji", "redapple"), ("twemoji", "alone")):
        folder = tmp_path / style / "package"
        folder.mkdir(parents=True)
        (folder / "icons.json").write_text(json.dumps({"icons": {name: {"body": "<g/>"}}}))
        (folder / "metadata.json").write_text(json.dumps({"categories": {GROUPS[1]: [name]}}))
    assert [(drawing.name, drawing.style) for drawing in read_emoji(tmp_path)] == [
        ("red apple", "noto"),
        ("red apple", "fxemoji"),
    ]


def test_no_picture_is_asked_for_its_own_name_as_another(parts) -> None:
    for drawing, row in dict(train_rows(parts))["yesno"]:
        assert (row["inputs"] == f"is it {drawing.name}?") == (row["outputs"] == "yes")


def test_rows_are_made_alike_whole_and_readable(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "fetch_sources", lambda cache: ["stamps cannot be had"])
    for name in ("one", "two"):
        data.make_data(cache, tmp_path / name)
    first, second = (sorted((tmp_path / name).rglob("*.json*")) for name in ("one", "two"))
    assert len(first) == 13 and [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert json.loads((tmp_path / "one" / data.NAMES).read_text())["missing"] == ["stamps cannot be had"]


def test_encoder_and_projection_lead_to_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours, by timm's smallest EfficientNet of random weights: late stages learn, early ones stay as they are."""
    from transformers import TimmWrapperConfig, TimmWrapperModel

    monkeypatch.setattr(align, "_EPOCHS", 15)
    torch.manual_seed(0)
    tower = TimmWrapperModel(TimmWrapperConfig(architecture="test_efficientnet", do_pooling=False)).float()
    words, targets = torch.randn(4, 3, 16), torch.arange(4).repeat(64)
    colours = torch.tensor([(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 220)])
    pictures = (colours[targets] + torch.randint(-20, 20, (256, 3)))[:, :, None, None].expand(-1, -1, 64, 64)
    normal = (torch.full((3,), 0.5), torch.full((3,), 0.5))
    pixels = normalize_pixels(pictures.to(torch.uint8), *normal)
    with torch.no_grad():
        for _ in range(50):  # statistics of batches, which random weights do not have
            tower.train()(pixels)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    # A second name, of light and dark, which every third picture does not have.
    shades = torch.where(torch.arange(256) % 3 == 0, align.UNNAMED, targets // 3)
    names = [
        align.Names(words, slice(0, 3), targets),
        align.Names(torch.randn(2, 1, 16), slice(3, 4), shades),
    ]
    layer = align.fit(tower, pictures.to(torch.uint8), normal, names, factor=1)
    with torch.no_grad():
        vectors = layer(tower(pixels).last_hidden_state.flatten(2).transpose(1, 2))
    assert vectors.shape == (256, 4, 16)
    spelled = vectors[:, :3].flatten(1) @ (words - words.mean(0)).flatten(1).T
    assert (spelled / (words - words.mean(0)).flatten(1).norm(dim=1)).argmax(1).tolist() == targets.tolist()
    said = names[1].similarity(vectors).argmax(1)
    assert said[shades >= 0].tolist() == shades[shades >= 0].tolist()
    length = torch.cat([(each.words - each.words.mean(0)).flatten(0, 1) for each in names]).norm(dim=1).mean().item()
    assert vectors.norm(dim=2).mean().item() == pytest.approx(length, rel=1e-3)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    changed = {
        name.split("timm_model.")[-1] for name, value in tower.state_dict().items() if (value != before[name]).any()
    }
    assert any(name.startswith("conv_head.") for name in changed)
    assert not [name for name in changed if name.startswith(align.KEPT)]


def test_pictures_are_called_by_name_kind_and_skin() -> None:
    asked = [(rows.WHAT, "red apple"), (rows.KIND, "food or drink"), (rows.WHO, "man cook, medium dark skin")]
    assert [align.regards(*each) for each in asked] == [
        {"name": "red apple"},
        {"kind": "food or drink"},
        {"name": "man cook", "skin": "medium dark skin"},
    ]


def test_names_are_spelled_kinds_are_the_mean_of_their_words_and_a_picture_may_have_none() -> None:
    ids = {" red apple": [0, 2], " pear": [1], " food": [3]}

    def tokenizer(texts: list[str], add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ids[text] for text in texts])

    vocabulary = torch.randn(5, 4)
    called = [{"name": "red apple", "kind": "food"}, {"name": "pear"}, {"name": "red apple"}]
    kinds, names = align.names_of(vocabulary, tokenizer, called)
    assert names.targets.tolist() == [1, 0, 1] and kinds.targets.tolist() == [0, align.UNNAMED, align.UNNAMED]
    torch.testing.assert_close(names.words, vocabulary[torch.tensor([[1, 1, 1], [0, 2, 2]])])
    torch.testing.assert_close(kinds.words, vocabulary[[3]][None])
    assert not kinds.around_their_mean.any()


@pytest.mark.parametrize(
    ("words", "number", "said"),
    [
        ([5.0], 3, [5.0, 5.0, 5.0]),
        ([5.0, 7.0], 3, [5.0, 7.0, 7.0]),
        ([5.0, 7.0, 2.0], 3, [5.0, 7.0, 2.0]),
        ([5.0, 7.0, 2.0, 4.0], 3, [5.0, 7.0, 3.0]),
        ([5.0, 7.0], 1, [6.0]),
    ],
)
def test_a_name_is_spelled_word_by_word(words: list[float], number: int, said: list[float]) -> None:
    assert align.spell(torch.tensor(words)[:, None], number).flatten().tolist() == said


class Tower(nn.Module):
    """Its features are its pixels."""

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=pixels)


def test_the_projection_of_patches_begins_as_the_layer_of_their_mean() -> None:
    torch.manual_seed(0)
    projection, layer, centre = Projection(12, 16, kind="pixel_shuffle", factor=2), nn.Linear(12, 16), torch.randn(16)
    align.start_projection(projection, layer, centre)
    features = torch.randn(3, 12, 4, 4)
    with torch.no_grad():
        tokens = projection(features.flatten(2).transpose(1, 2), (4, 4))
        expected = layer(align.token_features(Tower(), features, 2)) + centre
    torch.testing.assert_close(tokens, expected)


def test_a_picture_of_too_few_tokens_is_refused() -> None:
    names = [align.Names(torch.randn(2, 3, 16), slice(0, 3), torch.tensor([0, 1]))]
    pictures, normal = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), (torch.zeros(3), torch.ones(3))
    with pytest.raises(DemoError, match="a picture of 2 pixels has 1 tokens, and what it is called is said by 3"):
        align.fit(Tower(), pictures, normal, names, factor=2)


class Looks:
    """A pipeline whose model finds a cat by the first look, and a dog, more surely, by the others."""

    text_encoder: Any

    def __init__(self) -> None:
        text = SimpleNamespace(input_ids=None, attention_mask=None)
        self.text_encoder = SimpleNamespace(prompts=lambda prompts: text, candidates=lambda prompts, names: names)

    def prompt(self, question: str, context: str) -> str:
        return question

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        return torch.zeros(1, 3, *picture.size)

    def exclusive(self) -> contextlib.nullcontext:
        return contextlib.nullcontext(self)

    def score_candidates(self, ids: None, mask: None, pixels: torch.Tensor, candidates: list) -> SimpleNamespace:
        assert pixels.shape[0] == len(candidates) == len(scores.DISTANCES)
        by_look = [torch.tensor([-1.0, -2.0]), *[torch.tensor([-3.0, -1.0])] * (len(candidates) - 1)]
        return SimpleNamespace(log_likelihood=by_look)


def test_a_name_is_ranked_by_the_mean_of_several_looks() -> None:
    picture = rows.encode(Image.new("RGB", (128, 128), "white"))
    row = {"inputs": rows.WHAT, "outputs": "dog", "image_base64_str": picture}
    (answered,) = scores.rank(cast(Any, Looks()), [row], [["cat", "dog"]])
    assert answered.answer == "dog" and answered.right


def test_pictures_are_varied_each_otherwise_and_stay_pictures() -> None:
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, :, 12:20, 12:20] = 1
    varied = align.vary(picture.expand(64, -1, -1, -1))
    seen = varied.mean((1, 2, 3))
    assert varied.shape == (64, 3, 32, 32) and len(seen.unique()) > 60
    # Bigger or smaller by the drawn size, which is inverse in a sampling grid: never gone, never all.
    assert (seen / picture.mean()).min() > 0.6 and (seen / picture.mean()).max() < 2.2


def test_a_drawing_from_nearer_is_larger_and_from_farther_smaller_on_its_background() -> None:
    drawing = Image.new("RGB", (128, 128), "white")
    drawing.paste("red", (44, 44, 84, 84))

    def red(picture: Image.Image) -> int:
        return sum(picture.getchannel("G").histogram()[:128])

    views = [scores.seen_from(drawing, distance) for distance in (0.5, 1.0, 2.0)]
    assert [view.size for view in views] == [(128, 128)] * 3
    assert [red(view) for view in views] == [pytest.approx(1600 * factor, rel=0.1) for factor in (4, 1, 0.25)]
    assert views[1].tobytes() == drawing.tobytes()
    assert all(view.getpixel((0, 0)) == (255, 255, 255) for view in views)


def test_without_emoji_it_says_which_packages_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "fetch_sources", lambda cache: [])
    with pytest.raises(DemoError, match="@iconify-json/noto"):
        data.make_data(tmp_path / "empty", tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_a_source_that_cannot_be_had_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], folder: Path) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="no network\nE: not reachable")

    monkeypatch.setattr(sources, "_run", fail)
    missing = sources.fetch_sources(tmp_path)
    assert len(missing) == len(sources.SOURCES) and all("E: not reachable" in line for line in missing)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert "left out" in capsys.readouterr().err


def test_a_seed_of_its_own_changes_no_other_draw(parts) -> None:
    random.seed(1)
    first = [row for _, row in dict(train_rows(parts))["yesno"]]
    random.seed(2)
    assert [row for _, row in dict(train_rows(parts))["yesno"]] == first


def test_the_page_says_what_was_measured() -> None:
    repository = Path(__file__).parents[2]
    measured = json.loads((repository / "benchmarks/results/things.json").read_text(encoding="utf-8"))["scores"]
    assert table([Score(**score) for score in measured]).rstrip() in (repository / "docs/things.md").read_text("utf-8")
