"""The comparison with other programs, on tiny models: those of transformers, which are installed anyway."""

import argparse
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.peers import command, environments, measure
from benchmarks.peers.cases import CAPTIONS, FIRST_TEXT, MIXED, Amounts, Case, answering, probe, ranking, training
from benchmarks.peers.child import Worker
from benchmarks.peers.children import started
from benchmarks.peers.environments import place_of
from benchmarks.peers.llava import Llava
from benchmarks.peers.ours import Ours
from benchmarks.peers.paligemma import PaliGemma
from benchmarks.peers.registry import PEERS
from benchmarks.peers.rows import log_likelihoods, prompt_rows, training_rows
from benchmarks.peers.setups import SMOLLM2_CLIP, tiny
from benchmarks.peers.summary import summary
from benchmarks.peers.weights import fill
from gitllm_plugin.errors import ConfigError, LostProcessError

FEW = Amounts(captions=2, mixed=2, texts=3, batches=(1, 2), new_tokens=4, candidates=20, rounds=1)


@pytest.fixture(scope="module")
def pair():
    """PaliGemma's class and ours."""
    setup = tiny(PEERS["paligemma"].setup)
    return Worker(Ours(setup)), Worker(PaliGemma(setup))


def vocabulary(worker):
    return worker.adapter.setup.text["vocab_size"]


@pytest.mark.parametrize("pictures", [True, False])
def test_paligemmas_class_computes_our_loss_and_gradient(pair, pictures):
    case = probe(vocabulary(pair[0]))
    ours, theirs = (each.loss(case, each.adapter.ways[0], pictures) for each in pair)
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert theirs["gradient"] == pytest.approx(ours["gradient"], rel=1e-4)
    assert ours["gradient"] > 0


def test_llavas_class_computes_our_loss_of_texts_and_another_of_pictures():
    setup = tiny(SMOLLM2_CLIP)
    case = probe(setup.text["vocab_size"])
    ours, theirs = Worker(Ours(setup)), Worker(Llava(setup))
    texts, pictures = ([each.loss(case, "", seen)["loss"] for each in (ours, theirs)] for seen in (False, True))
    assert texts[0] == pytest.approx(texts[1], rel=1e-5)
    assert pictures[0] != pytest.approx(pictures[1], rel=1e-5)


def test_both_train_the_same_weights_and_freeze_the_rest(pair):
    counts = [sum(parameter.numel() for parameter in each.adapter.trained) for each in pair]
    assert counts[0] == counts[1] > 0
    assert not any(
        parameter.requires_grad for parameter in pair[1].adapter.model.base_model.model.model.vision_tower.parameters()
    )


def test_a_step_of_training_gives_its_loss_and_changes_no_weight(pair):
    worker = pair[1]
    case = training(vocabulary(worker), FEW)[0]
    before = {name: value.clone() for name, value in worker.adapter.model.named_parameters()}
    first, second = worker.train(case, worker.adapter.ways[0]), worker.train(case, worker.adapter.ways[0])
    assert first["found"] == second["found"] and second["seconds"] > 0
    assert all(value.equal(before[name]) for name, value in worker.adapter.model.named_parameters())


def test_merged_models_give_equal_answers_and_scores():
    setup = tiny(PEERS["paligemma"].setup)
    ours, theirs = Worker(Ours(setup)), Worker(PaliGemma(setup))
    for worker in (ours, theirs):
        worker.merge()
    for case in answering(setup.text["vocab_size"], FEW):
        found = ours.generate(case)["found"]
        assert theirs.generate(case)["found"] == found
        assert [len(tokens) for tokens in found] == [FEW.new_tokens] * len(case.texts)
    case = ranking(setup.text["vocab_size"], FEW)
    assert theirs.rank(case)["found"] == pytest.approx(ours.rank(case)["found"], abs=1e-4)


def test_memory_is_of_one_step(pair):
    told = pair[0].memory(probe(vocabulary(pair[0])), "ours")
    assert 0 < told["peak_gib"] < 8 and told["beyond_gib"] < told["peak_gib"]


@pytest.mark.parametrize("number, lengths", [(0, CAPTIONS), (1, CAPTIONS), (2, MIXED), (3, MIXED)])
def test_texts_have_the_lengths_that_are_asked_for(number, lengths):
    case = training(1000, replace(FEW, captions=40, mixed=40))[number]
    for text in case.texts:
        for ids, (low, high) in zip((text.prompt, text.answer), lengths, strict=True):
            assert low <= len(ids) <= high and min(ids) >= FIRST_TEXT and max(ids) < 1000


def test_cases_are_the_same_for_all_and_go_through_json():
    cases = [*training(300, FEW), *answering(300, FEW), ranking(300, FEW)]
    assert cases == [*training(300, FEW), *answering(300, FEW), ranking(300, FEW)]
    assert [Case.from_json(json.loads(json.dumps(case.as_json()))) for case in cases] == cases
    assert [case.images for case in cases if case.kind == "train"] == [2, 1, 2, 1]
    assert cases[1].supervised == sum(len(text.answer) for text in cases[1].texts)


def test_weights_are_drawn_from_their_common_names():
    one, other = nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 12, bias=False))
    fill(one, lambda name: f"text.q_proj.{name}")
    fill(other, lambda name: ["text.q_proj.weight", "text.k_proj.weight", "text.v_proj.weight"])
    assert one.weight.equal(other[0].weight[:4])
    assert not other[0].weight[:4].equal(other[0].weight[4:8])
    assert one.bias.abs().max() < 0.2 < one.weight.abs().max()


def test_rows_have_places_for_the_image_and_padding_on_the_right_or_the_left():
    texts = probe(300).texts[:2]
    images = torch.zeros(2, 3, 8, 8)
    rows = training_rows(texts, 3, images)
    sizes = [3 + len(text.prompt) + len(text.answer) for text in texts]
    assert rows.attention_mask.sum(1).tolist() == sizes and rows.input_ids.shape[1] == max(sizes)
    assert (rows.token_type_ids == 0).sum(1).tolist() == [3, 3]
    assert (rows.labels != -100).sum(1).tolist() == [len(text.answer) for text in texts]
    prompts = prompt_rows(texts, 3, images)
    assert prompts.attention_mask[:, -1].tolist() == [1, 1]
    assert prompts.input_ids[0, -1] == texts[0].prompt[-1]


def test_log_likelihoods_are_those_of_labels_alone():
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[-100, -100, 3, 5], [-100, 2, -100, -100]])
    wanted = logits.log_softmax(-1)
    assert log_likelihoods(logits, labels) == pytest.approx(
        [float(wanted[0, 1, 3] + wanted[0, 2, 5]), float(wanted[1, 0, 2])], rel=1e-5
    )


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_the_command_measures_all_and_writes_json_and_a_page(tmp_path, monkeypatch, name):
    """With both programs in this process: what goes through pipes is JSON all the same."""

    class Here:
        def __init__(self, adapter):
            self.worker = Worker(adapter)

        def ask(self, **request):
            if "case" in request:
                request["case"] = request["case"].as_json()
            return json.loads(json.dumps(self.worker.answer(json.loads(json.dumps(request)))))

    @contextmanager
    def started_here(adapter, setup, *args, **kwargs):
        made = {"Ours": Ours, "Llava": Llava, "PaliGemma": PaliGemma}[adapter.split(":")[1]](setup)
        yield Here(made), {"ways": list(made.ways), "other_losses": [], "libraries": {"torch": torch.__version__}}

    monkeypatch.setattr(measure, "started", started_here)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([name, "--tiny", "--output", str(tmp_path)]))
    found = json.loads((tmp_path / f"peers-{name}.json").read_text())
    assert len(found["train"]) == 4 and len(found["memory"]) == 2 and len(found["generate"]) == 3
    assert found["rank"]["ranked_by_peer"] == 8
    assert found["equality"]["pictures"] == (name == "paligemma")
    if name == "paligemma":
        assert all(case["equal_tokens"] == 1 for case in found["generate"])
        assert found["rank"]["furthest"] < 1e-3
    text = (tmp_path / f"peers-{name}.md").read_text()
    for part in ("## Training", "## Peak memory", "## Answers", "Ranking 20 answers"):
        assert text.count(part) == 1
    (row,) = summary(tmp_path).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == f"[{name}](../benchmarks/results/peers-{name}.md)" and all(
        float(cell) >= 0 for cell in cells[1:]
    )


def test_the_page_has_the_table_of_all_that_was_measured():
    assert summary() in Path("docs/benchmarks.md").read_text()


def test_a_name_that_is_no_program_is_refused():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(SystemExit, match="'llama' is none of llava, paligemma, nanovlm"):
        command.run(parser.parse_args(["llama"]))


def test_another_loss_ends_the_comparison():
    class Wrong:
        def __init__(self, loss):
            self.loss = loss

        def ask(self, **request):
            return {"loss": self.loss, "gradient": 1.0}

    with pytest.raises(AssertionError, match="padded: loss is 2.1, ours 2.0"):
        measure.compare(Wrong(2.0), Wrong(2.1), ["padded"], probe(300), True, "float32")


def test_a_process_that_ends_says_how():
    said = r"(?s)exit status 1.*No module named 'benchmarks.peers.nobody'"
    with pytest.raises(LostProcessError, match=said), started("benchmarks.peers.nobody:Nobody", tiny(SMOLLM2_CLIP)):
        pass


@pytest.mark.parametrize("name", list(PEERS))
def test_what_a_peer_needs_is_pinned(name):
    peer = PEERS[name]
    if peer.requirements_file is not None:
        lines = peer.requirements_file.read_text().split()
        assert lines and all("==" in line for line in lines)
        assert {line.split("==")[0] for line in lines} >= set(peer.libraries)
    if peer.source is not None:
        assert len(peer.source[1]) == 40
    module = Path(*peer.adapter.split(":")[0].split(".")).with_suffix(".py")
    assert f"class {peer.adapter.split(':')[1]}(" in module.read_text()


def test_a_missing_environment_is_told_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ConfigError, match="--environments FOLDER"):
        place_of("heron", PEERS["heron"], None, None)
    with pytest.raises(ConfigError, match=f"peers heron --setup --environments {tmp_path}"):
        place_of("heron", PEERS["heron"], tmp_path, None)
    assert place_of("llava", PEERS["llava"], None, None) == measure.Place()


def test_setting_up_installs_what_is_pinned_and_takes_the_commit(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(environments.subprocess, "run", lambda line, check: called.append(line))
    environments.set_up(PEERS["heron"], tmp_path, None)
    assert [line[0] for line in called][-2:] == ["git", "git"]
    assert called[1][-1] == str(PEERS["heron"].requirements_file)
    assert called[-1][-1] == PEERS["heron"].source[1]
    called.clear()
    environments.set_up(PEERS["heron"], tmp_path, tmp_path)
    assert not any(line[0] == "git" for line in called)
