"""YAML that is no configuration, or was one: an error line or a configuration, soon, and in little memory."""

import copy
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import gitllm_plugin
from gitllm_plugin.config.options import as_assignments
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.config_check import check_config
from gitllm_plugin.host.config_file import MOST_BYTES, load_config
from gitllm_plugin.resources import config_path
from tests.small_run import ENVIRONMENT, ROOT, write_small_run

SHIPPED = sorted([*Path(config_path("models")).rglob("*.yaml"), *Path(config_path("datasets")).rglob("*.yaml")])
SHIPPED += sorted((ROOT / "projects").rglob("*.yaml"))
SECONDS = 20


@pytest.fixture(scope="module", autouse=True)
def registered_classes():
    gitllm_plugin.register()


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise in the middle of what takes longer."""

    def late(number, frame):
        raise AssertionError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def error_of(content: bytes, path: Path) -> str:
    """The error that a file with these bytes gives, empty where it is right; another exception is raised."""
    path.write_bytes(content)
    with within(SECONDS):
        try:
            check_config(path)
        except ConfigError as error:
            assert str(path) in str(error)
            return str(error)
    return ""


def laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 [ha]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


def merges(levels: int, width: int) -> str:
    lines = ["m0: &m0 {k0: 1}"]
    for level in range(1, levels):
        lines.append(f"m{level}: &m{level}\n  <<: [{', '.join([f'*m{level - 1}'] * width)}]\n  k{level}: 1")
    return "\n".join(lines)


def chained(levels: int, value: str, first: str = "'a run'") -> str:
    """Lines of which each has the one before twice, by ``value``, where NAME stands for it."""
    lines = [f"s0: {first}"]
    return "\n".join([*lines, *(f"s{n}: " + value.replace("NAME", f"s{n - 1}") for n in range(1, levels))])


TOO_LARGE = "with its interpolations put in"

STRANGE = {
    "doubled text": (chained(40, "'${NAME}${NAME}'").encode(), TOO_LARGE),
    "doubled mappings": (chained(40, "{x: '${NAME}', y: '${NAME}'}", "{z: 1}").encode(), TOO_LARGE),
    "doubled lists": (chained(40, "['${NAME}', ['${NAME}']]", "[1]").encode(), TOO_LARGE),
    "doubled by selecting": (chained(40, "'${oc.select:NAME}${oc.select:NAME}'").encode(), TOO_LARGE),
    "doubled beside": (
        ("run: {" + ", ".join(chained(40, "'${.NAME} ${.NAME}'").splitlines()) + "}").encode(),
        TOO_LARGE,
    ),
    "a long text many times": (b"a: " + b"x" * 400_000 + b"\nrun: {seed: '" + b"${a}" * 9_000 + b"'}", TOO_LARGE),
    "doubled by a default": (chained(40, "'${oc.env:NO_SUCH_NAME,${NAME}}${NAME}'").encode(), TOO_LARGE),
    "doubled by a name in a name": (
        b"names: {a: b}\n" + chained(40, "{b: '${NAME.${names.a}}${NAME.${names.a}}'}", "{b: c}").encode(),
        TOO_LARGE,
    ),
    "a mapping in itself": (b"run: &r\n  seed: 1\n  again: *r\n", "refers to itself"),
    "a list in itself": (b"run: {trackers: &t [a, [b, *t]]}\n", "refers to itself"),
    "a key that is its mapping": (b"run: &r {? *r : 1}\n", "refers to itself"),
    "merged into itself": (b"run: &r\n  <<: *r\n", "refers to itself"),
    "laughs": (laughs(12, 9).encode(), "more than 100000 values"),
    "wide laughs": (laughs(4, 400).encode(), "more than 100000 values"),
    "merged laughs": (merges(14, 8).encode(), "more than 100000 values"),
    "deep": (b"run: " + b"[" * 100 + b"]" * 100, "nested more than 40 deep"),
    "very deep": (b"[" * 300_000, "nested more than 40 deep"),
    "deep blocks": (b"\n".join(b" " * i + b"a:" for i in range(900)), "nested"),
    "a long file": (b"run: {seed: 1}\n" + b"# nothing\n" * (MOST_BYTES // 10), "more than 1000000 bytes"),
    "duplicate keys": (b"run: {seed: 1}\nrun: {seed: 2}\n", "duplicate key"),
    "a tab": (b"run:\n\tseed: 1\n", "cannot start any token"),
    "NUL bytes": (b"run: \0\0\0", "is not a YAML file that can be read"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "its text is not UTF-8"),
    "UTF-16": ("run: {seed: 1}".encode("utf-16"), "its text is not UTF-8"),
    "Latin-1": ("run: {output_dir: Läufe}".encode("latin-1"), "its text is not UTF-8"),
    "empty": (b"", "must hold the sections"),
    "white": (b"  \n# nothing\n", "must hold the sections"),
    "a list": (b"- model\n- run\n", "must hold the sections"),
    "a number": (b"42", "must hold the sections"),
    "two documents": (b"run: {}\n---\nrun: {}\n", "expected a single document"),
    "no whole number": (b"run: {seed: !!int none}", "is not a YAML file that can be read"),
    "no time": (b"run: {seed: !!timestamp soon}", "is not a YAML file that can be read"),
    "no truth": (b"run: {evaluate: !!bool maybe}", "is not a YAML file that can be read"),
    "a set": (b"run: {trackers: !!set {a, b}}", "is not a YAML file that can be read"),
    "an object": (b"run: !!python/object/apply:os.system [false]", "is not a YAML file that can be read"),
    "digits": (b"run: {seed: " + b"9" * 5000 + b"}", "is not a YAML file that can be read"),
    "a list for a key": (b"run: {? [a] : 1}", "is not a YAML file that can be read"),
    "an alias of nothing": (b"run: *nowhere", "found undefined alias"),
    "interpolated in a circle": (b"run: {seed: '${model.a}'}\nmodel: {a: '${run.seed}'}", "ecursi"),
    "interpolated from itself": (b"run: {output_dir: '${run.output_dir}x'}", "ecursi"),
    "half an interpolation": (b"run: {seed: '${run.'}", "seed"),
    "a lone half of a pair": (b'run: {output_dir: "\\ud800"}', "is not a YAML file that can be read"),
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_packages_own_files_can_be_read(path):
    assert load_config(path)


@pytest.mark.parametrize("name", STRANGE)
def test_strange_files_are_one_error(tmp_path, name):
    content, expected = STRANGE[name]
    assert expected in error_of(content, tmp_path / "strange.yaml")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = write_small_run(tmp_path)
    assert error_of(b"\xef\xbb\xbf" + path.read_bytes(), path) == ""


@pytest.mark.parametrize(
    "option",
    [
        "run.seed=!!int x",
        "run.seed=" + "[" * 5000,
        "run.seed=" + "[" * 100_000,
        "run.a=&a [*a]",
        "run.seed=" + "9" * 5000,
    ],
)
def test_options_that_are_no_yaml(tmp_path, option):
    with within(SECONDS), pytest.raises(ConfigError, match=r"^(--options|/)"):
        check_config(write_small_run(tmp_path), as_assignments([option]))


def test_options_that_double_each_other(tmp_path):
    options = ["run.s0=a", *(f"run.s{n}=${{run.s{n - 1}}}${{run.s{n - 1}}}" for n in range(1, 40))]
    with within(SECONDS), pytest.raises(ConfigError, match=TOO_LARGE):
        check_config(write_small_run(tmp_path), options)


@pytest.mark.parametrize("levels", [1, 5, 12])
def test_what_stays_small_is_put_in(tmp_path, levels):
    path = write_small_run(tmp_path)
    path.write_text(path.read_text() + "\n" + chained(levels, "'${NAME}-${NAME}'") + "\n")
    assert TOO_LARGE not in error_of(path.read_bytes(), path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "folder"])
def test_names_that_are_no_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="there is no configuration file"):
        check_config(name)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))


@pytest.mark.parametrize("name", ["laughs", "a list in itself", "very deep"])
def test_the_command_says_one_line_in_little_memory(tmp_path, name):
    path = tmp_path / "strange.yaml"
    path.write_bytes(STRANGE[name][0])
    command = [sys.executable, "-m", "gitllm_plugin", "train", "--dry-run", "--cfg-path", str(path)]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, preexec_fn=_limit_memory
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] != []


_PIECES = (
    b"*a", b"&a ", b"<<: *a", b"[", b"{", b"]", b"}", b"\t", b"\0", b"\xff", b"- ", b": ", b"? ", b"|\n", b"'", b'"',
    b"%", b"---\n", b"!!int ", b"!!binary ", b"!!python/name:os.system ", b"${run.seed}", b"${", b"${oc.env:HOME}",
    b".nan", b"null", b"[]", b"{}", b"-1", b"1e999", b"\xef\xbb\xbf", b"=", b"2020-99-99", b"~", b"\\ud800", b"0b_",
)  # fmt: skip


def mutated(content: bytes, generator: random.Random) -> bytes:
    """A file with some of its bytes or lines gone, doubled, moved, or with pieces of YAML put in."""
    content = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        start = generator.randrange(len(content) + 1)
        end = min(len(content), start + generator.choice((1, 2, 8, 40)))
        lines = bytes(content).split(b"\n")
        which = generator.randrange(len(lines))
        match generator.randrange(7):
            case 0:
                content[start:start] = generator.choice(_PIECES)
            case 1:
                del content[start:end]
            case 2:
                content[start:start] = content[start:end] * generator.choice((1, 2, 50))
            case 3 if start < len(content):
                content[start] = generator.randrange(256)
            case 4:
                lines[which] = b" " * generator.randrange(9) + lines[which].lstrip()
                content = bytearray(b"\n".join(lines))
            case 5:
                lines.insert(generator.randrange(len(lines)), lines[which])
                content = bytearray(b"\n".join(lines))
            case 6:
                head, colon, _ = lines[which].partition(b":")
                lines[which] = head + colon + b" " + generator.choice(_PIECES)
                content = bytearray(b"\n".join(lines))
    return bytes(content)


_VALUES = (
    None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "x", "a\0b", "1e-3", "${run.seed}", "${run", [], {},
    [None], {"a": 1}, {1: {2: 3}}, b"\xff", "2020-99-99", "train", ["train", "val"], "tiny:llama", "~", "git_llm",
)  # fmt: skip


def _places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every mapping's key and list's number, with what it is of."""
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        found.append((node, key))
        if isinstance(value, (dict, list)):
            _places(value, found)
    return found


def rewritten(content: bytes, generator: random.Random) -> bytes:
    """A file that is still YAML: with other values, keys gone or misspelt, and aliases of what stands elsewhere."""
    tree = OmegaConf.to_container(OmegaConf.create(content.decode()))
    places = _places(tree, [])
    for _ in range(generator.randint(1, 3)):
        node, key = generator.choice(places)
        if isinstance(node, list) and key >= len(node) or isinstance(node, dict) and key not in node:
            continue  # moved before
        other, _ = generator.choice(places)
        match generator.randrange(6):
            case 0 | 1 | 2:
                node[key] = generator.choice(_VALUES)
            case 3:
                del node[key]
            case 4 if isinstance(node, dict):
                node[f"{key}{generator.choice(('x', 's', '.a', ' '))}"] = node.pop(key)
            case _:
                node[key] = other if generator.random() < 0.3 else copy.copy(node[key])
    return yaml.safe_dump(tree, allow_unicode=True).encode()


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_mutated_configurations_are_right_or_one_error(tmp_path, caplog, count):
    """Of the package's own files and of a whole run's; of every four, one has other bytes and three other values."""
    caplog.set_level("CRITICAL")
    sources = [write_small_run(tmp_path), *SHIPPED]
    found = {"right": 0, "no YAML": 0, "checked": 0}
    for number in range(count):
        generator = random.Random(number)
        source = sources[0] if number % 2 else generator.choice(sources)
        content = (rewritten if number % 8 >= 2 else mutated)(source.read_bytes(), generator)
        try:
            error = error_of(content, tmp_path / "mutated.yaml")
        except Exception as raised:
            raise AssertionError(f"number {number}, of {source}: {content!r}") from raised
        found["no YAML" if "can be read" in error else "checked" if error else "right"] += 1
    print(found)
    assert sum(found.values()) == count
    # Most come as far as the check of their values.
    assert found["checked"] > count / 3 and found["right"] > 0 and found["no YAML"] > count / 10
