"""The page, made with Gradio."""

from __future__ import annotations

import logging
import os
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from gitllm_plugin.errors import ConfigError, GitLLMError
from gitllm_plugin.inference.asking import Answering, Decoding, Question
from gitllm_plugin.m3it.marks import count_marks, pictures_so_far
from gitllm_plugin.m3it.prompts import WITH_QUESTION, WITHOUT_QUESTION
from gitllm_plugin.web.answering import VIDEO_SUFFIXES, Turn, answer, describe, read_pictures
from gitllm_plugin.web.examples import write_examples
from gitllm_plugin.web.limits import MOST_BEAMS, MOST_CHARACTERS, MOST_NEW_TOKENS, MOST_SECONDS, check_texts

_LOOK_EVERY, _DELETE_AFTER = 600, 3600
"""Seconds: how often uploads and figures are looked at, and at which age they are deleted."""

_MOST_TURNS = 50
"""Of a conversation, that are shown; a model that was trained on conversations reads them, another reads none."""

_AS_IT_IS = {"__type__": "update"}
"""What Gradio's ``skip`` gives: the component is left alone."""

_WITHOUT_ERRORS = """(...given) => {
    document.querySelectorAll(".toast-close").forEach((button) => button.click());
    return given;
}"""
"""Takes messages of earlier actions off the page when there is another."""


def build_page(engine: Answering, name: str, examples: Path, trained: Sequence[Question] = ()) -> Any:
    """Build the page as Gradio's ``Blocks``.

    Args:
        engine: the model.
        name: of the model, for the page.
        examples: a folder to write example pictures into.
        trained: questions that the model was trained to answer, for examples.

    Raises:
        ConfigError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise ConfigError(f'the page needs Gradio ({error}): pip install "gitllm-plugin[web]"') from error
    figures = _figures_of(engine)
    asking = _Asking(engine, figures)
    with gr.Blocks(title="GIT-LLM", analytics_enabled=False, delete_cache=(_LOOK_EVERY, _DELETE_AFTER)) as page:
        gr.Markdown(f"# GIT-LLM\n{describe(engine, name)}. Nothing is sent anywhere.{'' if figures else _NO_FIGURES}")
        with gr.Row():
            with gr.Column(scale=2):
                pictures = _picture_input(gr, engine.max_images)
                question, instruction = _question_input(gr), _instruction_input(gr, engine.instruction)
            with gr.Column(scale=3):
                chat = _chat(gr)
                with gr.Row():
                    question.render()
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop")
                with gr.Accordion("Instruction, and how the answer is searched for", open=False):
                    instruction.render()
                    settings = _decoding_inputs(gr)
        attention, words = _figure_outputs(gr, visible=figures is not None)
        _examples(gr, write_examples(examples, trained), engine.max_images, pictures, question, instruction)
        turns = gr.State([], time_to_live=_DELETE_AFTER)
        outputs = [chat, attention, words, turns, question]
        asked = {"inputs": [pictures, instruction, question, *settings, turns], "outputs": outputs}
        shared: dict[str, Any] = {"js": _WITHOUT_ERRORS, "concurrency_id": "model"}
        running = [
            gr.on([ask.click, question.submit], asking.respond, **asked, **shared),
            chat.retry(asking.again, **asked, **shared),
        ]
        stop.click(None, cancels=cast(Any, running))
        pictures.change(asking.look, [pictures], [chat, attention, words, turns], **shared)
        chat.clear(asking.forget, None, [chat, attention, words, turns], **shared)
    return page


_NO_FIGURES = " llama.cpp gives no attention weights: the figures need the trained run or its exported folder."


def _figures_of(engine: Answering) -> Any:
    if not hasattr(engine, "exclusive"):  # no model in torch, which may not be installed then
        return None
    from gitllm_plugin.web.figures import figures_of

    return figures_of(engine)


class _Asking:
    """The events of the page.

    Args:
        engine: the model.
        figures: what draws about its answers; None: nothing does.
    """

    def __init__(self, engine: Answering, figures: Any) -> None:
        self.engine = engine
        self.figures = figures

    def respond(self, files: list[str] | None, instruction: str | None, question: str | None, *rest: Any) -> Any:
        """Answer a question; gives chat, figures, turns and what is left in the box, as they come."""
        *settings, turns = rest
        with _told_on_the_page():
            yield from self._respond(files or [], (instruction or "").strip() or None, question or "", settings, turns)

    def again(self, files: list[str] | None, instruction: str | None, question: str | None, *rest: Any) -> Any:
        """Answer the last question once more; what is written in the box stays."""
        *settings, turns = rest
        for *shown, _ in self.respond(files, instruction, turns[-1].question if turns else "", *settings, turns[:-1]):
            yield *shown, _AS_IT_IS

    def look(self, files: list[str] | None) -> Any:
        """Begin a conversation about other pictures, and say at once where one cannot be read."""
        yield self.forget()
        if files:
            with _told_on_the_page():
                read_pictures(files, self.engine.max_images)

    def forget(self) -> Any:
        """Empty the chat and take the figures away."""
        return [], None, None, []

    def _respond(
        self, files: list[str], instruction: str | None, question: str, settings: Sequence[float], turns: list[Turn]
    ) -> Iterator[tuple[Any, ...]]:
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
        pictures = read_pictures(files, self.engine.max_images)
        earlier, said, begun = turns[-_MOST_TURNS + 1 :], "", False
        before = tuple((turn.question, turn.answer) for turn in turns) if self.engine.conversations else ()
        check_texts(conversation="".join(said for turn in before for said in turn))
        asked = Question((), question, instruction, before)
        questions = [*(each for each, _ in before), question]
        placed = self.engine.places_pictures and any(map(count_marks, questions))
        if placed:
            pictures = list(pictures_so_far(pictures, questions))
        for said in answer(self.engine, pictures, asked, decoding):
            now = [*earlier, Turn(question, said)]
            # The box is emptied once: the next question may be written while this one is answered.
            yield _messages(now, instruction), None, None, now, _AS_IT_IS if begun else ""
            begun = True
        now = [*earlier, Turn(question, said)]
        shown = _messages(now, instruction)
        # There is no figure of attention to pictures between words.
        if self.figures is None or placed:
            yield shown, None, None, now, _AS_IT_IS if begun else ""
            return
        attention = self.figures.attention(pictures, asked, said, decoding)
        yield shown, attention, None, now, _AS_IT_IS if begun else ""
        yield shown, attention, self.figures.words(pictures), now, _AS_IT_IS


def _messages(turns: Sequence[Turn], instruction: str | None) -> list[dict[str, str]]:
    """Write a conversation as Gradio's chat has it."""
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (
            ("user", turn.question.strip() or instruction or WITHOUT_QUESTION),
            ("assistant", turn.answer or "(nothing)"),
        )
    ]


@contextmanager
def _told_on_the_page() -> Iterator[None]:
    """Make an error a message of the page."""
    import gradio as gr

    try:
        yield
    except GitLLMError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
    except Exception as error:
        logging.exception("The page could not answer")
        raise gr.Error(_unexpected(error), duration=None, print_exception=False) from error


def _unexpected(error: Exception) -> str:
    """Say in one sentence what is no fault of the input, such as a GPU without memory."""
    reason = next(iter(str(error).splitlines()), "").rstrip(".")
    name = type(error).__name__
    return f"The model failed ({name}{': ' if reason else ''}{reason}); the whole error is where the page was started."


def _picture_input(gr: Any, max_images: int) -> Any:
    if max_images == 1:
        sources = ["upload", "clipboard", "webcam"]
        return _of_files(gr.Image)(
            type="filepath", label="Picture", sources=sources, height=320, alt_text="The picture that is asked about"
        )
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
        render=False,
    )


def _question_input(gr: Any) -> Any:
    return gr.Textbox(
        label="Question",
        placeholder="what is in the picture? (empty: it is described)",
        elem_id="question",
        max_length=MOST_CHARACTERS,
        render=False,
    )


def _chat(gr: Any) -> Any:
    """Make the conversation; what is said is text, not Markdown, which could fetch pictures."""
    return gr.Chatbot(
        label="Conversation about the picture",
        elem_id="chat",
        height=360,
        buttons=["copy", "copy_all"],
        render_markdown=False,
        placeholder="Choose a picture and ask. Each question is about the picture; earlier ones are not read again.",
    )


def _figure_outputs(gr: Any, visible: bool) -> tuple[Any, Any]:
    with gr.Column(visible=visible):
        with gr.Tab("Attention of the answer"):
            gr.Markdown(
                "How much of their attention the answer's tokens give to each patch, mean of heads and layers. "
                "Percent: what all patches get together; the rest goes to the text."
            )
            attention = gr.HTML(elem_id="attention")
        with gr.Tab("Patches in words"):
            gr.Markdown("The language model's token that is nearest to each patch's vector.")
            words = gr.HTML(elem_id="words")
    return attention, words


def _examples(gr: Any, written: Sequence[tuple], most: int, pictures: Any, question: Any, instruction: Any) -> None:
    """Show examples that the model takes; the instruction is shown where one has its own."""
    fit = sorted((each for each in written if len(each[0]) <= most), key=lambda each: not each[1])
    own = any(each[2] for each in fit)
    rows = [[files if most > 1 else files[0], text, *([asked or ""] if own else [])] for files, text, asked in fit]
    if rows:
        gr.Examples(rows, inputs=[pictures, question, *([instruction] if own else [])], cache_examples=False)


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
