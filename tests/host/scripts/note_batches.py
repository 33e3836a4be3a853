"""Trains through LAVIS's main sequence, noting of every batch which data set it is from and what is in it.

Arguments: a configuration, a file for the notes, before which batch this process is killed (0 for never), options.
"""

import json
import os
import signal
import sys

import gitllm_plugin

gitllm_plugin.register()

from gitllm_plugin.host import launch  # noqa: E402
from gitllm_plugin.tasks.m3it import M3ITTask  # noqa: E402

config, notes, killed_before, *options = sys.argv[1:]
train_outputs = M3ITTask.train_outputs
done = 0


def source_of(samples: dict) -> str:
    """Weighted answers are VQAv2's; rows of M3IT say of which configuration they are; the rest are captions."""
    return "coco_vqa" if "n_answers" in samples else "m3it" if "config" in samples else "coco_caption"


def noted(self, model, samples):
    global done
    done += 1
    if done == int(killed_before):
        os.kill(os.getpid(), signal.SIGKILL)
    pixels = samples["image"].double().sum().item()
    note = [source_of(samples), len(samples["image"]), list(samples["text_input"]), pixels]
    with open(notes, "a") as file:
        file.write(json.dumps(note) + "\n")
    return train_outputs(self, model, samples)


M3ITTask.train_outputs = noted
launch.train(config, options)
