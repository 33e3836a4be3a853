"""The page, made with Gradio."""

from __future__ import annotations

import logging
import os
from abc import ABCMeta
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from gitllm_plugin.errors import ConfigError, GitLLMError
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from gitllm_plugin.m3it.prompts import WITH_QUESTION, WITHOUT_QUESTION
from gitllm_plugin.web.answering import VIDEO_SUFFIXES, Answering
from gitllm_plugin.web.examples import write_examples
from gitllm_plugin.web.limits import MOST_BEAMS, MOST_CHARACTERS, MOST_NEW_TOKENS, MOST_SECONDS, check_texts

_LOOK_EVERY, _DELETE_AFTER = 600, 3600
"""Seconds: how often uploads and figures are looked at, and at which age they are deleted."""

_ABOUT = """\
**{name}**: {encoder} and {decoder}, {parameters} parameters. It runs on this machine ({device}); nothing is sent
anywhere. Without a question the model does what the instruction says alone.
"""


def build_page(pipeline: Pipeline, name: str, examples: Path) -> Any:
    """Build the page as Gradio's ``Blocks``.

    Args:
        pipeline: the model.
        name: of the model, for the page.
        examples: a folder to write example pictures into.

    Raises:
        ConfigError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise ConfigError(f'the page needs Gradio ({error}): pip install "gitllm-plugin[web]"') from error
    answering = Answering(pipeline)
    several = pipeline.model.max_images > 1
    with gr.Blocks(title="GIT-LLM", analytics_enabled=False, delete_cache=(_LOOK_EVERY, _DELETE_AFTER)) as page:
        gr.Markdown("# GIT-LLM\n" + _about(pipeline, name))
        with gr.Row():
            with gr.Column():
                pictures = _picture_input(gr, pipeline.model.max_images)
                instruction = _instruction_input(gr, pipeline.instruction)
                question = _question_input(gr)
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop")
                settings = _decoding_inputs(gr)
            with gr.Column():
                answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer", lines=3)
                with gr.Tab("Attention of the answer"):
                    gr.Markdown(
                        "How much of their attention the answer's tokens give to each patch, mean of heads and layers. "
                        "Percent: what all patches get together; the rest goes to the text."
                    )
                    attention = gr.Plot(show_label=False, elem_id="attention")
                with gr.Tab("Patches in words"):
                    gr.Markdown("The language model's token that is nearest to each patch's vector.")
                    words = gr.Plot(show_label=False, elem_id="words")
        rows = [[[path] if several else path, text] for path, text in write_examples(examples)]
        gr.Examples(rows, inputs=[pictures, question], cache_examples=False)

        def respond(
            files: list[str] | None, instruction: str | None, question: str | None, *settings: float
        ) -> Iterator[tuple[Any, Any, Any]]:
            instruction = (instruction or "").strip() or None  # Gradio gives None for a box that nobody touched
            try:
                yield from _respond(answering, files or [], instruction, question or "", settings)
            except GitLLMError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from error
            except Exception as error:
                logging.exception("The page could not answer")
                raise gr.Error(_unexpected(error), duration=None, print_exception=False) from error

        inputs, outputs = [pictures, instruction, question, *settings], [answer, attention, words]
        running = [ask.click(respond, inputs, outputs), question.submit(respond, inputs, outputs)]
        stop.click(None, cancels=cast(Any, running))
    return page


def _respond(
    answering: Answering, files: list[str], instruction: str | None, question: str, settings: tuple[float, ...]
) -> Iterator[tuple[Any, Any, Any]]:
    """Give the contents of answer, attention and words, as they come."""
    check_texts(question=question, instruction=instruction)
    max_new_tokens, num_beams, temperature, top_p, repetition_penalty = settings
    decoding = Decoding(
        min(int(max_new_tokens), MOST_NEW_TOKENS),
        min(int(num_beams), MOST_BEAMS),
        temperature,
        top_p,
        repetition_penalty,
        max_seconds=MOST_SECONDS,
    )
    pictures = answering.read_pictures(files)
    answer = ""
    for answer in answering.answer(pictures, question, instruction, decoding):
        yield answer, None, None
    attention = answering.draw_attention(pictures, question, instruction, answer, decoding)
    yield answer, attention, None
    yield answer, attention, answering.draw_words(pictures)


def _unexpected(error: Exception) -> str:
    """Say in one sentence what is no fault of the input, such as a GPU without memory."""
    reason = next(iter(str(error).splitlines()), "").rstrip(".")
    name = type(error).__name__
    return f"The model failed ({name}{': ' if reason else ''}{reason}); the whole error is where the page was started."


def _picture_input(gr: Any, max_images: int) -> Any:
    if max_images == 1:
        sources = ["upload", "clipboard", "webcam"]
        return _of_files(gr.Image)(type="filepath", label="Picture", sources=sources, height=320)
    return _of_files(gr.Gallery)(
        type="filepath",
        label=f"Up to {max_images} pictures, or a video",
        file_types=["image", *VIDEO_SUFFIXES],
        interactive=True,
        height=320,
    )


def _of_files(component: type) -> Any:
    """Make a component of Gradio's give its files as they are.

    Gradio itself decodes and converts what it is given, in whatever format it is. It makes components anew in sessions,
    so that a method of one is not enough; and its way of deriving classes writes a file beside the module.
    """
    own = {"preprocess": lambda self, payload: _uploaded(payload), "__module__": component.__module__}
    return ABCMeta.__new__(type(component), component.__name__, (component,), own)


def _uploaded(payload: Any) -> list[str]:
    """List the files of a picture or a gallery, as Gradio has them."""
    if payload is None:
        return []
    items = (
        [getattr(each, "video", None) or each.image for each in payload.root] if hasattr(payload, "root") else [payload]
    )
    return [item.path for item in items if item.path]


def _instruction_input(gr: Any, own: str | None) -> Any:
    """Make an empty box that shows with which instruction the model is asked while it is empty."""
    usual = f'empty: this with a question, "{WITHOUT_QUESTION}" without one'
    return gr.Textbox(
        label="Instruction",
        max_length=MOST_CHARACTERS,
        placeholder=WITH_QUESTION if own is None else own,
        info=usual if own is None else "empty: the model's own",
    )


def _question_input(gr: Any) -> Any:
    return gr.Textbox(
        label="Question", placeholder="what is in the picture?", elem_id="question", max_length=MOST_CHARACTERS
    )


def _decoding_inputs(gr: Any) -> list[Any]:
    defaults = Decoding()
    with gr.Accordion("How the answer is searched for", open=False):
        return [
            gr.Slider(1, MOST_NEW_TOKENS, defaults.max_new_tokens, step=1, label="Most tokens of the answer"),
            gr.Slider(
                1, MOST_BEAMS, defaults.num_beams, step=1, label="Beams", info="above 1 the answer comes at once"
            ),
            gr.Slider(0, 2, defaults.temperature, step=0.1, label="Temperature", info="0 searches, above it samples"),
            gr.Slider(0.05, 1, defaults.top_p, step=0.05, label="Nucleus (top p)", info="for sampling"),
            gr.Slider(1, 2, defaults.repetition_penalty, step=0.05, label="Penalty on repetition"),
        ]


def _about(pipeline: Pipeline, name: str) -> str:
    model = pipeline.model
    return _ABOUT.format(
        name=name,
        encoder=model.image_encoder.tower.config.model_type,
        decoder=model.language_model.config.model_type,
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.1f} M",
        device=pipeline.device,
    )
