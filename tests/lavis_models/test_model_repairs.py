"""What is given to LAVIS's models computes what transformers 4.26 computed, and transformers stays as it is."""

import ast
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import gitllm_plugin
from gitllm_plugin.host import old_transformers
from gitllm_plugin.host.patching import apply_all
from tests.lavis_models import recipes, trial

LAST = torch.finfo(torch.float32).min
ROW = re.compile(r"\| ([\w/]+\.py) \| ([\d/, ]+) \| `(.+?)` \| .+ \| `(.+)` \|")


def model(**config):
    return SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(**config))


def test_head_masks():
    assert old_transformers.get_head_mask(model(), None, 3) == [None] * 3
    mask = old_transformers.get_head_mask(model(), torch.tensor([1, 0]), 3)
    assert mask.shape == (3, 1, 2, 1, 1)
    assert mask.dtype == torch.float32
    each = old_transformers.get_head_mask(model(), torch.tensor([[1, 0], [0, 1], [1, 1]]), 3)
    assert each[:, 0, :, 0, 0].tolist() == [[1, 0], [0, 1], [1, 1]]


def test_masks_of_cross_attention():
    inverted = old_transformers.invert_attention_mask(model(), torch.tensor([[1, 0]]))
    assert inverted.tolist() == [[[[0, LAST]]]]
    square = old_transformers.invert_attention_mask(model(), torch.tensor([[[1, 0], [1, 1]]]))
    assert square.tolist() == [[[[0, LAST], [0, 0]]]]


@pytest.mark.parametrize("cached", [0, 2])
def test_masks_of_self_attention(cached):
    padding = torch.tensor([[1, 1, 0, 1]])
    whole = old_transformers.get_extended_attention_mask(model(is_decoder=False), padding, (1, 4))
    assert whole.tolist() == [[[[0, 0, LAST, 0]]]]
    causal = old_transformers.get_extended_attention_mask(model(is_decoder=True), padding, (1, 4 - cached))
    for query in range(cached, 4):
        visible = [key <= query and bool(padding[0, key]) for key in range(4)]
        assert [value == 0 for value in causal[0, 0, query - cached].tolist()] == visible


def test_beams_repeat_the_text_and_not_the_image():
    image = torch.zeros(6, 1)
    ids, rest = old_transformers.expand_inputs_for_generation(
        3, input_ids=torch.tensor([[1], [2]]), attention_mask=torch.ones(2, 1), encoder_hidden_states=image
    )
    assert ids.flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert rest["attention_mask"].shape == (6, 1)
    assert rest["encoder_hidden_states"] is image


def test_transformers_stays_as_it_is():
    gitllm_plugin.register()
    for kind in (transformers.PreTrainedModel, transformers.BertModel, transformers.OPTForCausalLM):
        assert not hasattr(kind, "get_head_mask")
        assert not hasattr(kind, "invert_attention_mask")
    assert not issubclass(transformers.PreTrainedModel, transformers.GenerationMixin)
    assert not hasattr(transformers.BertTokenizer, "additional_special_tokens_ids")


@pytest.mark.parametrize("error", [AttributeError("no such name"), ImportError("gone"), TypeError("bases")])
def test_a_repair_that_does_not_fit_is_told_and_the_others_are_done(error, caplog):
    done = []

    def does_not_fit():
        raise error

    apply_all([does_not_fit, lambda: done.append(True)])
    assert done == [True]
    assert f"some of LAVIS's own models may not work: does_not_fit: {error}" in caplog.text


def test_all_repairs_fit(caplog):
    from gitllm_plugin.host import model_repairs, single_model_repairs

    gitllm_plugin.register()
    model_repairs.repair_models()
    single_model_repairs.repair_single_models()
    assert "may not work" not in caplog.text


@pytest.mark.parametrize(
    "name", ["blip2", "blip2_t5", "blip_caption", "blip2_vicuna_instruct" if trial.ON_MAIN else "blip2_opt"]
)
def test_a_step_of_generation_reads_one_token(name, monkeypatch):
    """With a cache; the first step reads the prompt, or for T5 the start."""
    with trial.workshop() as folder:
        captioner = recipes.build(name, folder).eval()
        recipes.fill(captioner)
        part = {"blip2": "Qformer", "blip_caption": "text_decoder", "blip2_vicuna_instruct": "llm_model"}.get(
            name, name.replace("blip2_", "") + "_model"
        )
        decoder = getattr(captioner, part)
        lengths, forward = [], type(decoder).forward

        def watched(self, input_ids=None, *args, **kwargs):
            ids = input_ids if input_ids is not None else kwargs.get("decoder_input_ids")
            lengths.append(None if ids is None else ids.shape[1])
            return forward(self, input_ids, *args, **kwargs)

        watched.__signature__ = inspect.signature(forward)
        monkeypatch.setattr(type(decoder), "forward", watched)
        recipes.recipe_of(name).uses["captions_greedy"](captioner)
    assert len(lengths) > 3
    assert set(lengths[1:]) == {1}


@pytest.mark.parametrize("name", ["albef_nlvr", "blip2", "blip_pretrain"])
def test_positions_are_counted_after_loading(name):
    with trial.workshop() as folder:
        buffers = dict(recipes.build(name, folder).named_buffers())
    counted = [buffer for key, buffer in buffers.items() if key.endswith("position_ids")]
    assert counted
    assert all(torch.equal(buffer[0], torch.arange(buffer.shape[1])) for buffer in counted)


@pytest.mark.parametrize("weights", [[0.5, 0.5, 1.0], [1.0, 0.25, 0.0], [0.3, 0.3, 0.9]])
@pytest.mark.parametrize("name", ["albef_vqa", "blip_vqa"])
def test_weights_of_answers_may_be_a_list(name, weights):
    with trial.workshop() as folder:
        losses = []
        for given in (weights, torch.tensor(weights)):
            built = recipes.build(name, folder)
            recipes.fill(built)
            losses.append(built.train()({**recipes.asked(), "weight": given})["loss"].item())
    assert losses[0] == losses[1] > 0


def rows_for_upstream():
    text = trial.PAGE.read_text(encoding="utf-8")
    return [match.groups() for match in map(ROW.fullmatch, text.splitlines()) if match]


def test_the_list_for_upstream_says_what_stands_where():
    gitllm_plugin.register()
    import lavis

    assert len(rows_for_upstream()) > 50
    root = Path(lavis.__file__).parent
    wrong = []
    for path, lines, code, _ in rows_for_upstream():
        for place in lines.split(", "):
            # Behind the slash: of git main, where it is another or the release has none.
            number = place.split("/")[-1 if trial.ON_MAIN else 0]
            if number and code not in (root / path).read_text(encoding="utf-8").splitlines()[int(number) - 1]:
                wrong.append(f"{path}:{number}")
    assert wrong == []


def test_every_repair_of_a_model_is_on_the_list():
    from gitllm_plugin.host import model_repairs, single_model_repairs

    listed = {name for *_, names in rows_for_upstream() for name in names.split("`, `")}
    names = set()
    for module in (model_repairs, single_model_repairs):
        functions = [
            node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.FunctionDef)
        ]
        names |= {
            each.name
            for each in functions
            if any("_repair" in ast.dump(d) or "_once" in ast.dump(d) for d in each.decorator_list)
        }
    assert len(names) > 15
    assert names <= listed
