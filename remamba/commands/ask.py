"""`remamba ask`: questions are answered from a long document, or from a memory of one."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from remamba.commands.model_options import ModelOptions, flag_of
from remamba.commands.sampling_options import SamplingArgs
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba import Answer, Document, Reader
    from remamba.methods.base import Method

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
    from remamba.commands.answers import Answered, as_json, as_page, print_answers
    from remamba.commands.reading import tell_untrained
    from remamba.commands.text_input import make_stdout_tolerant, read_text
    from remamba.files import write_whole

    _check(args)
    text = read_text(args.document) if args.document is not None else ""
    reader = args.reading.load()
    other = args.reading.load(args.plain_model) if args.plain_model is not None else None
    if args.memory is None and args.reading.method is None and reader.is_untrained:
        tell_untrained(reader, reader.method)
    document = _document(args, reader, text)
    answers = _answers(args, reader, document)
    plain: Sequence[Answer | None] = [None] * len(answers)
    if other is not None:
        plain = _answers(args, other, text, "plain")
    elif args.compare:
        plain = _answers(args, reader, document, "plain")
    answered = [
        Answered(question, answer, beside, document, is_same_model=other is None)
        for question, answer, beside in zip(args.question, answers, plain, strict=True)
    ]
    if args.selection is not None:
        title = args.document if args.document not in (None, "-") else args.memory
        page = as_page(title or "standard input", document.text, answered)
        write_whole(args.selection, page, f"--selection {args.selection}")
        print(f"the selection is in {args.selection}", file=sys.stderr)
    if args.json:
        print(json_module.dumps({**_facts(args, reader, document), "answers": as_json(answered)}))
    else:
        make_stdout_tolerant()
        print_answers(document, answered, args.show)
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


def _document(args: Args, reader: Reader, text: str) -> Document:
    """The document, read from its text or from the memory file, and how it is to be read."""
    from remamba.commands.reading import reading_bar

    if args.memory is not None:
        document = reader.load(args.memory)
        if not document.ids and args.selection is not None:
            raise InputError(f"--selection needs a text, and {args.memory} holds no tokens")
        document.method = method = _method_on(args, document)
    else:
        method = args.reading.chosen(reader)
    if method.name == "plain" and (args.compare or args.plain_model):
        raise InputError("there is nothing to compare: plain Mamba answers already")
    if args.memory is None:
        with reading_bar() as bar:
            document = reader.read(text, method=method, progress=bar)
    return document


def _method_on(args: Args, document: Document) -> Method:
    """A memory's own method, with what the command line changes of it."""
    from remamba.methods.remamba import ReMamba

    reading = args.reading
    if reading.method is not None:
        return reading.chosen(document.reader)
    changes = reading.changes()
    if options := reading.method_options():
        raise InputError(
            f"{flag_of(options[0])} is told without a method, and {args.memory} was read by "
            f"{document.method.name}, whose options are in the file: leave it out, or give --method"
        )
    if not changes:
        return document.method
    if not isinstance(document.method, ReMamba):
        raise InputError(
            f"{args.memory} was read by the method {document.method.name}, which keeps no words: "
            f"leave --{next(iter(changes)).replace('_', '-')} out, or read the document again"
        )
    method = ReMamba(document.method.compression.replace(**changes))
    if not method.serves_memory:
        settings = method.compression
        raise InputError(
            f"{args.memory} cannot serve start={settings.start}, length={settings.length}, "
            f"placement={settings.placement!r}, with which stage 2 would read it again: give "
            "--document in its place"
        )
    return method


def _answers(
    args: Args, reader: Reader, document: Document | str, method: str | None = None
) -> list[Answer]:
    """All questions to one model: of a memory, or of the document's text."""
    from remamba.commands.text_input import unescape
    from remamba.engine.answer import Ask

    template, options = args.question_template, args.sampling.options()
    return reader.answer(
        [
            Ask(
                document,
                question.strip(),
                method=method,
                options=options,
                template=None if template is None else unescape(template),
            )
            for question in args.question
        ]
    )


def _facts(args: Args, reader: Reader, document: Document) -> dict[str, Any]:
    """What holds for all answers, for --json."""
    return {
        "model": reader.name,
        "plain_model": args.plain_model or (reader.name if args.compare else None),
        "device": str(reader.model.device),
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "document": args.document,
        "memory": args.memory,
        "document_tokens": len(document),
        "method": document.method.to_dict(),
        "seconds": {"load": reader.seconds, "read": document.seconds},
    }
