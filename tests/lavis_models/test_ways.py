"""LAVIS's scripts, unmodified, train and evaluate its models and ours, however they are started."""

from pathlib import Path

import pytest

from tests.lavis_models import trial, ways

WITHOUT_MAIN = "GITLLM_TEST_LAVIS_MAIN names no checkout of LAVIS's git main"
HOSTS = [
    "1.0.2",
    pytest.param("git main", marks=pytest.mark.skipif("git main" not in ways.HOSTS, reason=WITHOUT_MAIN)),
]


@pytest.fixture
def place(tmp_path):
    with trial.workshop() as models:
        yield ways.Workplace(tmp_path / "place", models)


def test_a_model_of_lavis_s_by_its_own_script_and_the_hook(place, tmp_path):
    way = ways.WAYS["`python train.py`, hook"]
    trained = place.train(ways.HOSTS["1.0.2"], way, "blip_vqa", tmp_path / "output")
    assert trained.losses[-1] < trained.losses[0]
    assert trained.scores["agg_metrics"] > 0 and len(trained.answers) == 10
    assert trained.weights.is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("model", ways.MODELS)
def test_every_way(host, model, place):
    found = ways.try_all(ways.HOSTS[host], model, place)
    rows = ways.rows(model, host, found)
    print("\n".join(rows))
    assert [row for row in rows if row not in ways.written_rows()] == []
    assert len({tuple(sorted(evaluated.answers)) for _, evaluated in found.values()}) == 1


def test_the_page_has_a_row_of_each_and_no_other():
    expected = [
        f"| `{model}` | {host} | {way} | yes | yes | yes |"
        for model in ways.MODELS
        for host in ("1.0.2", "git main")
        for way in ways.WAYS
    ]
    assert ways.written_rows() == expected


def test_differences_are_seen(tmp_path):
    outcome = ways.Outcome([2.0, 1.0], {"score": 50.0}, {"1": "red"}, Path("best"))
    same = ways.Outcome([2.00001, 1.0], {"score": 50.0}, {"1": "red"}, None)
    assert outcome.agrees(same)
    for other in (
        ways.Outcome([2.0, 1.01], {"score": 50.0}, {"1": "red"}, None),
        ways.Outcome([2.0, 1.0], {"score": 60.0}, {"1": "red"}, None),
        ways.Outcome([2.0, 1.0], {"score": 50.0}, {"1": "blue"}, None),
        ways.Outcome([2.0, 1.0], {"scores": 50.0}, {"1": "red"}, None),
    ):
        assert not outcome.agrees(other)
    evaluated = ways.Outcome([], same.scores, same.answers, None)
    risen = ways.Outcome([1.0, 2.0], same.scores, same.answers, None)
    rows = ways.rows("m", "h", {"a": (outcome, evaluated), "b": (risen, evaluated)})
    assert rows == ["| `m` | h | a | yes | yes | yes |", "| `m` | h | b | no | yes | no |"]
