"""Where the pictures and videos of LAVIS's data sets come from: a command where one is enough, else the page.

Of LAVIS's download scripts and data cards (git main); LAVIS itself names addresses of annotations alone.
"""

import re
import shlex
from pathlib import Path

LAVIS = "https://github.com/salesforce/LAVIS"

_COCO = (
    "for part in train2014 val2014 test2014 test2015; do "
    "curl -fL -o $part.zip http://images.cocodataset.org/zips/$part.zip && unzip -q $part.zip -d {place}; done"
)
_FLICKR30K = "the pictures are given on request: https://shannon.cs.illinois.edu/DenotationGraph"
_VISUAL_GENOME = (
    "for part in images images2; do curl -fL -o $part.zip "
    "https://cs.stanford.edu/people/rak248/VG_100K_2/$part.zip && unzip -q $part.zip -d {place}; done"
)
_GQA = "curl -fL -o gqa.zip https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip && unzip -q gqa.zip -d {above}"

# By the beginning of a data set's name: the longest is meant. {place} is its folder, {above} the one above.
_SOURCES = {
    "coco_": _COCO,
    "ok_vqa": _COCO,
    "aok_vqa": _COCO,
    "llava150k": "curl -fL -o train2017.zip http://images.cocodataset.org/zips/train2017.zip "
    "&& unzip -q train2017.zip -d {above}",
    "vg_": _VISUAL_GENOME,
    "gqa": _GQA,
    "flickr30k": _FLICKR30K,
    "snli_ve": f"{_FLICKR30K}, the annotations at https://github.com/necla-ml/SNLI-VE",
    "nlvr": "the pictures are given on request: https://lil.nlp.cornell.edu/nlvr",
    "nocaps": "https://nocaps.org/download, in the folders val and test of {place}; "
    f"lavis/datasets/download_scripts/download_nocaps.py of {LAVIS} does it",
    "imagenet": "https://image-net.org, in a folder for each class, such as n01440764",
    "conceptual_caption": "https://ai.google.com/research/ConceptualCaptions/download; "
    f"lavis/datasets/download_scripts/DownloadConceptualCaptions of {LAVIS} fetches pictures and annotations",
    "sbu_caption": f"lavis/datasets/download_scripts/download_sbu.py of {LAVIS} fetches the pictures one by one",
    "laion": "https://laion.ai; img2dataset makes such shards of its lists",
    "visdial": "https://visualdialog.org/data",
    "git_llm_visdial": "https://visualdialog.org/data",
    "avsd": "https://github.com/hudaAlamri/DSTC7-Audio-Visual-Scene-Aware-Dialog-AVSD-Challenge",
    "msrvtt": f"lavis/datasets/download_scripts/download_msrvtt.py of {LAVIS} names the archives",
    "msvd": "curl -fL https://www.cs.utexas.edu/users/ml/clamp/videoDescription/YouTubeClips.tar "
    "| tar -x --strip-components=1 --one-top-level={place}",
    "didemo": "curl -fL https://storage.googleapis.com/sfr-vision-language-research/LAVIS/datasets/didemo/"
    "didemo_videos.tar.gz | tar -xz --strip-components=1 --one-top-level={place}",
    "vatex": "https://eric-xw.github.io/vatex-website",
}


def where_from(error: str) -> str | None:
    """Say how what a configuration lacks is got, by the error that says so; None where that is not known."""
    if "gitllm/demo/" in error or "output/demo/" in error:
        return "`make demo` in a checkout makes it"
    data_set = re.match(r"datasets\.(\w+)\..* does not exist", error)
    known = data_set and data_set[1] in _SOURCES
    return f"it comes from {how_to_get_files(data_set[1], None)}" if data_set and known else None


def how_to_get_files(name: str, place: Path | None) -> str:
    """Say how the pictures, videos or features of a data set are got.

    Args:
        name: the data set's, as registered.
        place: the folder they belong in; None where there is none to name, and a page is all that helps.
    """
    known = max((begin for begin in _SOURCES if name.startswith(begin)), key=len, default=None)
    if known is None:
        return f"LAVIS does not say where they come from; see {LAVIS}"
    source = _SOURCES[known]
    if place is None and "{" in source:
        return f"see {LAVIS}/tree/main/dataset_card"
    folders = (place or Path(), (place or Path()).parent)
    return source.format(place=shlex.quote(str(folders[0])), above=shlex.quote(str(folders[1])))
