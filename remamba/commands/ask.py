"""`remamba ask`: questions are answered from a long document, or from a memory of one."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from remamba.commands.model_options import LoadedModel, ModelOptions
from remamba.commands.sampling_options import SamplingArgs
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba import CompressionConfig, DocumentMemory
    from remamba.commands.answers import Answered
    from remamba.engine.engine import Completion

OWN_TEMPLATE = "(default: the model's own)"


@dataclass(frozen=True)
class Args:
    """Answer questions from a long document, and show which of its words were kept for each.

    The model reads the document, keeps the words that matter for the question, and reads again.
    With --memory the first reading is taken from a file that `remamba read` wrote.

    Example: remamba ask --document report.txt --question "Who signed the contract?" --compare
    """

    document: Annotated[str | None, arg(metavar="FILE")] = None
    """A text file (UTF-8); - is standard input."""
    memory: Annotated[str | None, arg(metavar="FILE")] = None
    """A memory of a document, in place of --document."""
    question: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    """What to ask; give it several times to ask several questions of one reading."""
    question_template: Annotated[
        str | None, arg(metavar="TEXT", help_behavior_hint=OWN_TEMPLATE)
    ] = None
    r"""How a question is written behind the document: {question} is its place, \n a line break."""
    compare: bool = False
    """Also let plain Mamba answer, with the same weights."""
    plain_model: Annotated[str | None, arg(metavar="NAME|DIR")] = None
    """Another model to answer as plain Mamba, in place of the same weights."""
    selection: Annotated[str | None, arg(metavar="FILE.html")] = None
    """Write a page that paints the kept words on the document."""
    overwrite: bool = False
    """Replace the page if it exists."""
    show: Annotated[int, arg(metavar="N")] = 8
    """How many kept places to show with each answer, the best first: a place is a word, or words
    next to one another that have one score."""
    json: bool = False
    """Print one JSON object."""
    sampling: OmitArgPrefixes[SamplingArgs] = field(default_factory=SamplingArgs)
    reading: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)


def run(args: Args) -> int:
    """Prints the answers, with the kept words and the time of each stage."""
    from remamba.commands.answers import as_json, as_page, print_answers
    from remamba.commands.text_input import make_stdout_tolerant
    from remamba.files import write_whole

    _check(args)
    asking = Asking(args)
    answered = asking.answer()
    if args.selection is not None:
        title = args.document if args.document not in (None, "-") else args.memory
        page = as_page(title or "standard input", asking.document.text, answered)
        write_whole(args.selection, page, f"--selection {args.selection}")
        print(f"the selection is in {args.selection}", file=sys.stderr)
    if args.json:
        print(json_module.dumps({**asking.facts(), "answers": as_json(answered)}))
    else:
        make_stdout_tolerant()
        print_answers(asking.document, answered, args.show)
    return 0


def _check(args: Args) -> None:
    """Raise InputError for what can be seen to be wrong before a model is loaded."""
    from remamba.commands.reading import check_output
    from remamba.engine.engine import fill_template

    if (args.document is None) == (args.memory is None):
        raise InputError("give either --document FILE or --memory FILE")
    if not args.question:
        raise InputError("there is no question; give --question TEXT")
    if not all(question.strip() for question in args.question):
        raise InputError("a question is empty; give --question TEXT with at least one word")
    if args.memory is not None and args.plain_model is not None:
        raise InputError(
            "--plain-model reads the document itself, and a memory belongs to one model; "
            "give --document"
        )
    if args.show < 0:
        raise InputError(f"--show {args.show} must not be negative")
    args.sampling.options()
    if args.question_template is not None:
        fill_template(args.question_template, "")
    if args.selection is not None:
        check_output("--selection", args.selection, args.overwrite, args.document, args.memory)


class Asking:
    """One document, the models that answer from it, and what they need to do so."""

    def __init__(self, args: Args):
        from remamba.commands.answers import Document
        from remamba.commands.reading import read_document
        from remamba.commands.text_input import read_text
        from remamba.text import decode_with_offsets, encode

        self.args = args
        text = read_text(args.document) if args.document is not None else ""
        self.loaded = args.reading.load()
        self.plain = args.reading.load(args.plain_model) if args.plain_model is not None else None
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        self.memory: DocumentMemory | None = None
        if args.memory is not None:
            self.memory = model.load_memory(args.memory)
            self.settings = self._settings_on(self.memory)
            ids: list[int] = []
            offsets: list[tuple[int, int]] = []
            if self.memory.input_ids is not None:
                ids = self.memory.input_ids[0, : int(self.memory.lengths[0])].tolist()
                text, offsets = decode_with_offsets(tokenizer, ids)
            elif args.selection is not None:
                raise InputError(f"--selection needs a text, and {args.memory} holds no tokens")
            self.document = Document(text, ids, offsets, is_read_once=True)
        else:
            self.document = Document(text, *encode(tokenizer, text))
            self.settings = args.reading.compression(model.config)
            if self.settings is None or self.settings.covers_document:
                self.memory, self.document.seconds = read_document(
                    model, self.document.ids, self.settings, self.loaded.piece_length
                )
                self.document.is_read_once = True
        if self.settings is None and (args.compare or args.plain_model):
            raise InputError(
                "there is nothing to compare: with these settings (selector none) plain Mamba "
                "answers already"
            )

    def _settings_on(self, memory: DocumentMemory) -> CompressionConfig | None:
        """A memory's own settings, with what the command line changes of them."""
        changes = self.args.reading.changes()
        if changes.get("selector") == "none":
            return None
        if memory.compression is None:
            if changes:
                raise InputError(
                    f"{self.args.memory} was read by plain Mamba, which keeps no words: leave "
                    f"--{next(iter(changes)).replace('_', '-')} out, or read the document again"
                )
            return None
        return memory.compression.replace(**changes)

    def answer(self) -> list[Answered]:
        """The answers to all questions, with plain Mamba's beside them if asked for."""
        from remamba.commands.answers import Answered

        done = self._complete(self.loaded, self.settings, self.memory)
        plain: Sequence[Completion | None] = [None] * len(done)
        if self.plain is not None:
            plain = self._complete(self.plain, None, None)
        elif self.args.compare:
            plain = self._complete(self.loaded, None, self.memory)
        return [
            Answered(question, completion, beside, self.document, self.plain is None)
            for question, completion, beside in zip(self.args.question, done, plain, strict=True)
        ]

    def _complete(
        self,
        loaded: LoadedModel,
        settings: CompressionConfig | None,
        memory: DocumentMemory | None,
    ) -> list[Completion]:
        """All questions to one model: of a memory, or of the document's text."""
        from remamba.commands.text_input import unescape
        from remamba.engine.engine import Engine, Request, fill_template
        from remamba.text import encode

        template = loaded.model.config.question_template
        if self.args.question_template is not None:
            template = unescape(self.args.question_template)
        context: dict[str, Any] = {"memory": memory}
        if memory is None:
            is_own = loaded is self.loaded
            ids = self.document.ids if is_own else encode(loaded.tokenizer, self.document.text).ids
            context = {"document": ids}
        requests = [
            Request(
                question=fill_template(template, question.strip()),
                options=self.args.sampling.options(),
                compression=False if settings is None else settings,
                **context,
            )
            for question in self.args.question
        ]
        engine = Engine(loaded.model, loaded.tokenizer, piece_length=loaded.piece_length)
        return engine.run(requests)

    def facts(self) -> dict[str, Any]:
        """What holds for all answers, for --json."""
        model = self.loaded.model
        return {
            "model": self.loaded.name,
            "plain_model": self.args.plain_model
            or (self.loaded.name if self.args.compare else None),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "document": self.args.document,
            "memory": self.args.memory,
            "document_tokens": self.document.tokens(self.memory),
            "compression": None if self.settings is None else self.settings.to_dict(),
            "seconds": {"load": self.loaded.seconds, "read": self.document.seconds},
        }
