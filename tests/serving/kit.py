"""A server of the command in a process of its own, and requests to it."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
from PIL import Image

COLORS = ("red", "green", "blue", "white")


def data_uri(color, size=(40, 30), file_format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, file_format)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def messages(uri, question="what color?", system=None):
    parts = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": uri}}]
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": parts}]


class Served:
    """``gitllm serve`` in a process of its own, in which LAVIS and what else is hidden cannot be imported."""

    def __init__(self, folder, *arguments, hidden=(), **environment):
        hide = f"sys.modules.update(dict.fromkeys({['lavis', *hidden]}))"
        program = f"import sys; {hide}\nfrom gitllm_plugin.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "serve", "--model", str(folder), "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
        )
        line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+)/v1", line)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def close(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)
