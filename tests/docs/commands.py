"""The commands of the pages that no runnable block has: each line of a `bash` block, one by one."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import MARK

_BLOCK = re.compile(rf"^(?P<mark>{MARK}\n)?```bash\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)

# Why a line is not run, by what it begins with or has in it; the first that fits.
NOT_RUN = {
    r"^(pip|apt-get|docker|git clone|uv) ": "changes the machine",
    r"^(make|source|mkdir|cd|export|find|for|do|done|#!|#|python -c|import json|\[ -e|print\(|rm|cp) ?": "of the shell",
    r"^(srun|sbatch|scontrol|torchrun|GITLLM_|HF_HUB_OFFLINE)": "needs a cluster or variables; tests/runners",
    r"^python -m (pytest|tests|benchmarks|examples|gitllm_plugin\.lmms|pycocoevalcap)": "long: a test or a measurement",
    r"^(curl|streamlit|vllm|lmms_eval|python docs|python train|python \S+train\.py)": "of another program",
    r"gitllm (serve|demo|hook|completion|doctor --fix|chat)": "does not end; tests/serving, tests/web, tests/cli",
    r"(--push|convert-checkpoint|https?://|user/name|Qwen/|llama2|google/)": "needs the network or released weights",
    r"(--to llama\.cpp|my-gguf|--to transformers|my-paligemma|conform llama)": "other folders; tests/llama_cpp",
    r"(M3IT|shards|data/stamps|stamps|features|from-csv|from-coco|from-messages|FOLDER)": "needs that data; tests/m3it",
    r"(gitllm run |\.\./LAVIS|path/to/LAVIS)": "needs a checkout of LAVIS; tests/lavis_models",
    r"gitllm (train|experiment|evaluate --cfg-path projects|evaluate projects)": "long; tests/runners",
    r"gitllm evaluate .*(gqa|demo_easyvqa|weights\.pth)": "needs that data; tests/tasks",
    r"(from-dataset|--data|--quantize|fruit)": "needs that data; tests/m3it, tests/cli",
}


def unmarked_lines(page: Path) -> Iterator[str]:
    """Commands of a page's blocks without the mark, continued lines joined, without notes behind them."""
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if not block["mark"]:
            for line in block["code"].replace("\\\n", " ").splitlines():
                words = line.strip()
                if words and not words.startswith("#"):
                    yield re.sub(r"\s+#.*$", "", words)


def why_not_run(line: str) -> str | None:
    """The reason why a line is not run; None where it is."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def arguments(line: str) -> list[str] | None:
    """What stands behind `gitllm`, without pipes; None where a line has no such command."""
    found = re.search(r"(?:^|\| )(?:gitllm|.*-m gitllm_plugin) (.*)$", line)
    if not found or "$" in line:
        return None
    words = shlex.split(found[1])
    for end in ("|", ">", "&&", "||", ";"):
        words = words[: words.index(end)] if end in words else words
    return words
