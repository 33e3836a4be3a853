"""LAVIS 1.0.2 on today's libraries, in one fresh process in which every package we replace is absent."""

import json

import pytest

from gitllm_plugin.host.placeholders import PACKAGES, RELEASE_PACKAGES

PROBE = """
import importlib, importlib.util, json, sys, warnings
warnings.simplefilter("ignore")
from gitllm_plugin.host import placeholders
from gitllm_plugin.host.locate import prepare

host = prepare()
import builtins, lavis
failed = {}
files = sorted(host.folder.rglob("*.py"))  # some of its folders are no packages, so not pkgutil
for file in files:
    name = ".".join(("lavis", *file.relative_to(host.folder).with_suffix("").parts)).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)

def message(call):
    try:
        call()
    except ImportError as error:
        return str(error)

from lavis.common.registry import registry
from lavis.datasets.data_utils import load_video
from lavis.models import vit
from lavis.processors.randaugment import cv2
import transformers.utils

print(json.dumps({
    "variant": host.variant,
    "failed": failed,
    "modules": len(files),
    "standing_in": placeholders.standing_in,
    "leaked": [name for name in placeholders.PACKAGES if name in sys.modules],
    "found": [name for name in placeholders.PACKAGES if importlib.util.find_spec(name)],
    "transformers_sees_cv2": transformers.utils.is_cv2_available(),
    "import_restored": not hasattr(builtins.__import__, "placeholders_for_lavis"),
    "runners": registry.list_runners(),
    "schedules": registry.list_lr_schedulers(),
    "video": message(lambda: load_video("film.mp4")),
    "checkpoint_wrapper": message(lambda: vit.checkpoint_wrapper(None)),
    "cv2": message(lambda: cv2.warpAffine(None)),
    "prepared_again": prepare() is host,
}))
"""


@pytest.fixture(scope="module")
def probe(run_python):
    finished = run_python(PROBE, hidden=PACKAGES)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_every_module_of_lavis_imports(probe):
    assert probe["variant"] == "1.0.2"
    assert probe["failed"] == {}
    assert probe["modules"] > 100


def test_runners_and_schedules_are_registered(probe):
    assert {"runner_base", "runner_iter"} <= set(probe["runners"])
    assert "linear_warmup_cosine_lr" in probe["schedules"]


def test_absent_packages_are_stood_in_for(probe):
    assert probe["standing_in"] == dict.fromkeys(RELEASE_PACKAGES, "not installed")


def test_other_libraries_still_see_that_the_packages_are_absent(probe):
    assert probe["leaked"] == []
    assert probe["found"] == []
    assert probe["transformers_sees_cv2"] is False
    assert probe["import_restored"]


@pytest.mark.parametrize(
    ("use", "package"),
    [("video", "decord"), ("checkpoint_wrapper", "fairscale"), ("cv2", "opencv-python-headless")],
)
def test_use_of_an_absent_package_names_what_to_install(probe, use, package):
    assert f"pip install {package}" in probe[use]


def test_preparing_twice_is_preparing_once(probe):
    assert probe["prepared_again"]
