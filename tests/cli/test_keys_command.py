"""`gitllm keys`: what a configuration may hold, from a terminal."""

import pytest

from gitllm_plugin.cli.main import main
from gitllm_plugin.host.declarations import declarations


def listed(capsys, *word: str) -> str:
    assert main(["keys", *word]) == 0
    return capsys.readouterr().out


def test_every_key_of_every_registered_class_is_listed(capsys):
    lines = listed(capsys).splitlines()
    for declaration in declarations():
        assert (declaration.title in lines) == any(declaration.paths())
        for path, key in declaration.paths():
            assert any(line.split("  ")[0] == path for line in lines), (declaration.title, path)
            assert key.meaning, path


def test_a_part_of_a_name_finds_keys_with_their_default_bounds_and_condition(capsys):
    output = listed(capsys, "warmup")
    assert "run: runner git_llm" in output and "model:" not in output
    row = next(line for line in output.splitlines() if line.startswith("warmup_lr"))
    assert row.split("  ", 1)[1].split()[:3] == ["null", "a", "number"]
    assert row.endswith("Read only where warmup_steps is above 0.")


@pytest.mark.parametrize(("word", "title", "key"), [("m3it_wds", "datasets: builder m3it_wds", "build_info.shards")])
def test_a_registered_name_lists_all_that_it_reads(capsys, word, title, key):
    output = listed(capsys, word)
    assert output.count("datasets: ") == 1 and title in output
    assert any(line.startswith(key) for line in output.splitlines())


def test_what_is_not_there_is_an_error_with_the_nearest(capsys):
    assert main(["keys", "warmup_step"]) == 0
    capsys.readouterr()
    assert main(["keys", "beta22"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'beta2'?" in said and "m3it_wds" in said


def test_what_stands_for_a_missing_key_is_told_in_words_where_the_class_does_not_know_it(capsys):
    lines = listed(capsys, "m3it").splitlines()
    assert any(line.split()[:5] == ["vis_processor", "of", "the", "type's", "file"] for line in lines)
    assert all(
        line.split()[1] == "needed"
        for line in listed(capsys, "model_type").splitlines()
        if line.startswith("model_type")
    )


def test_a_processor_stands_where_it_is_named(capsys):
    output = listed(capsys, "text_processor")
    assert "text_processor: processor git_llm_instruction" in output
    assert "git_llm_image_train" not in output
