"""A reader: documents and questions in, answers out, all of it text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

import torch

from remamba.bare_model import BaseReMamba
from remamba.checkpoints.published import is_published, load_any
from remamba.compression_config import CompressionConfig
from remamba.engine.answer import Answer, Ask, AskedMethod
from remamba.engine.document import Document
from remamba.engine.engine import Engine
from remamba.engine.entering import ReadJob, read
from remamba.engine.loading import CPU_PIECE, GPU_PIECE, resolve_device, resolve_dtype
from remamba.engine.made import AnswerStream, Made, left_by_words, serves
from remamba.engine.progress import Progress, telling
from remamba.engine.request import Job, Request, fill_template
from remamba.engine.sampling import SamplingOptions
from remamba.errors import InputError
from remamba.execution.passes import PassOptions
from remamba.execution.steps import finish
from remamba.methods.base import Method
from remamba.methods.bm25 import Bm25, best_of
from remamba.methods.chunks import Chunks
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.pretrained import EMBEDDED, quiet_transformers
from remamba.text import decode_with_offsets, encode, load_tokenizer, opening_tokens, read_text

if TYPE_CHECKING:
    from remamba.engine.loop import EngineLoop

UNTRAINED = Bm25()
"""How a model without a trained selection reads documents where nothing is said: the best of those
that need no training in docs/METHODS.md."""
UNTRAINED_MEMORY = Chunks(candidates=3)
"""The same where a memory is to be kept: the best of those that one reading serves."""
LOOK_AHEAD = 64
"""How many asks wait in the engine beyond those in its slots, so that alike ones meet."""

OF_ASK_OR_MACHINE = (InputError, RuntimeError, MemoryError)
"""Errors of an ask, or of the machine as out of memory; others are bugs, and always raised."""

Known = WeakValueDictionary[tuple[str, str | Path], Document]
"""Texts and files that asks under way are about, by their prefix and themselves."""


def resolve_method(model: BaseReMamba, wanted: AskedMethod) -> Method:
    """The method that is meant for a model.

    Raises:
        InputError: there is no such method, or this model cannot read by it.
    """
    if isinstance(wanted, CompressionConfig):
        return ReMamba(wanted)
    if wanted == "remamba" and model.config.method == "plain":
        raise InputError(
            "method 'remamba': this model was not trained for it; give a CompressionConfig as the "
            "method, or use 'plain'"
        )
    return model.resolve_method(method=wanted)


class Reader:
    """A model that reads documents and answers questions about them, in text.

    >>> from pathlib import Path
    >>> from remamba import Ask, Reader
    >>> reader = Reader("remamba-tiny", device="cpu")
    >>> reader
    Reader('remamba-tiny', mamba, 4,344,576 parameters, float32 on cpu)

    A document is read once and asked many times. A Path is a file; a str is the text itself.

    >>> doc = reader.read(Path("examples/demo_document.txt"))
    >>> len(doc)
    8037
    >>> answer = doc.ask("What is the occupation of William Talbot?")
    >>> print(answer.text)
     dentist
    >>> " ".join(word.text for word in answer.kept if word.score > 0.76)
    "dentist . Remember , for William Talbot's trade , say dentist ."

    Many questions in one call, each about a document of its own or some about one:

    >>> text = "Anna Berg was born in Oslo. Say Oslo when anyone asks."
    >>> asks = [Ask(doc, "Who?", method="plain"), Ask(text, "Where was Anna Berg born?")]
    >>> [(answer.method, answer.finish_reason) for answer in reader.answer(asks)]
    [('plain', 'eos'), ('remamba', 'eos')]

    Args:
        model: a model directory, a hub name, an embedded model's name, or a loaded model. A
            published Mamba, Mamba-2 or Falcon-Mamba needs no conversion; as it has no trained
            selection, it reads documents by UNTRAINED where no method is given.
        tokenizer: of a loaded model; else it lies beside the model unless given here.
        device, dtype: where a named model runs and in which numbers; "auto" is a GPU if there is
            one, in bfloat16 if it can, else a CPU in float32. A loaded model stays as it is.
        piece_length: tokens read at once: bounds the memory that a long text takes, changes no
            result. None: CPU_PIECE, on a GPU GPU_PIECE.
        slots: how many asks are answered at once.

    Raises:
        InputError: there is no such model, tokenizer or device, or they do not fit together.

    Not for several threads at once: a server gives it one.
    """

    def __init__(
        self,
        model: str | Path | BaseReMamba = EMBEDDED,
        tokenizer: Any = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        piece_length: int | None = None,
        slots: int = 8,
    ):
        for name, value in (("piece_length", piece_length), ("slots", slots)):
            if value is not None and value < 1:
                raise InputError(f"{name} = {value} must be at least 1")
        begun = time.perf_counter()
        if isinstance(model, str | Path):
            place = resolve_device(device)
            numbers = resolve_dtype(dtype, place)
            with quiet_transformers():
                loaded: Any = load_any(model, numbers).to(place)  # type: ignore[arg-type]
                if tokenizer is None:
                    tokenizer = load_tokenizer(model, loaded.config.vocab_size)
            self.name = str(model)
            self.is_untrained = is_published(model)
        else:
            if tokenizer is None:
                raise InputError("a loaded model comes without a tokenizer; give tokenizer=")
            if (device, dtype) != ("auto", "auto"):
                raise InputError(
                    "device and dtype are for a model that is loaded here; move a loaded one "
                    "itself: model.to(...)"
                )
            self.name, loaded = model.name_or_path or type(model).__name__, model
            self.is_untrained = False
        self.model: BaseReMamba = loaded.eval()
        self.tokenizer = tokenizer
        on_gpu = self.model.device.type == "cuda"
        self.piece_length = piece_length or (GPU_PIECE if on_gpu else CPU_PIECE)
        self.slots = slots
        self.seconds = time.perf_counter() - begun
        """Spent on loading."""
        self._engine: Engine | None = None
        self._loop: EngineLoop | None = None

    @property
    def method(self) -> Method:
        """How documents are read where nothing else is asked for."""
        return UNTRAINED if self.is_untrained else self.model.resolve_method()

    def __repr__(self) -> str:
        model, dtype = self.model, str(self.model.dtype).removeprefix("torch.")
        kind, count = model.config.backbone_type, sum(x.numel() for x in model.parameters())
        return f"Reader({self.name!r}, {kind}, {count:,} parameters, {dtype} on {model.device})"

    def read(
        self, document: str | Path, *, method: AskedMethod = None, progress: Progress | None = None
    ) -> Document:
        """A document, read once where its settings allow that.

        Args:
            document: the text itself, or the Path of a text file (UTF-8).
            method: None is the reader's own; see `AskedMethod`.
            progress: called with the tokens read so far, and all there are.

        Raises:
            InputError: the text is empty or cannot be read, the method is unknown, or the
                document's states are not finite.
        """
        found = self.encoded(document, method)
        if found.method.serves_memory:
            begun = time.perf_counter()
            found.memory = self.read_document(found, found.method, progress)
            found.seconds = time.perf_counter() - begun
        return found

    def load(self, path: str | Path) -> Document:
        """The document of a file that `Document.save` or `remamba read` wrote.

        Its text is that of its tokens; it is empty where the file holds none.

        Raises:
            InputError: there is no such memory, it is truncated, or another model's.
        """
        memory = self.model.load_memory(path)
        if memory.documents != 1:
            raise InputError(
                f"{path} holds {memory.documents} documents; save one of them alone: "
                "memory.select(torch.tensor([i])).save(...)"
            )
        text, ids, offsets = "", list[int](), list[tuple[int, int]]()
        if memory.input_ids is not None:
            rows = zip(memory.input_ids.tolist(), memory.lengths.tolist(), strict=True)
            first, *others = (row[:length] for row, length in rows)
            begins = opening_tokens(self.tokenizer)
            # every chunk begins as the document does
            ids = [*first, *(token for row in others for token in row[len(begins) :])]
            text, offsets = decode_with_offsets(self.tokenizer, ids)
        begins = opening_tokens(self.tokenizer) if ids else []
        return Document(self, text, ids, offsets, memory.method, memory, opening=len(begins))

    def answer(
        self, asks: Sequence[Ask], *, errors: Literal["raise", "return"] = "raise"
    ) -> list[Answer]:
        """An answer for each ask, in their order; see `answer_each`."""
        found = dict(self.answer_each(asks, errors=errors))
        return [found[number] for number in range(len(asks))]

    def answer_each(
        self, asks: Sequence[Ask], *, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[tuple[int, Answer]]:
        """Each ask's number and its answer, as soon as it is there.

        Asks are answered side by side, and questions about one document that stand next to one
        another share its reading.

        Args:
            errors: "raise" ends at the first ask that cannot be answered; "return" gives it an
                Answer with an `error` and goes on, also where the machine's memory is too small.

        Raises:
            InputError: with "raise", an ask cannot be answered.
        """
        if errors not in ("raise", "return"):
            raise InputError(f"errors={errors!r} is unknown; choose one of raise, return")
        if errors == "raise":  # what can be seen at once is told before the work, not after it
            for ask in asks:
                self._check(ask)
        return self._answer_each(list(enumerate(asks)), self.slots, errors == "return")

    def stream(self, ask: Ask) -> AnswerStream:
        """One ask's text, piece by piece as it becomes final; then its `answer`.

        Raises:
            InputError: it cannot be answered.
        """
        made = self.request_of(ask, WeakValueDictionary())
        text = self._ready_engine().stream(made.request)
        return AnswerStream(text, made.answer)

    def _ready_engine(self, slots: int | None = None) -> Engine:
        """The engine that is kept from call to call; or one of other slots, for once."""
        if self._loop is not None:
            raise InputError("an EngineLoop runs this reader; ask that: loop.ask(...)")
        if slots not in (None, self.slots):
            return Engine(self.model, self.tokenizer, slots, piece_length=self.piece_length)
        if self._engine is None:
            self._engine = Engine(
                self.model, self.tokenizer, self.slots, piece_length=self.piece_length
            )
        return self._engine

    def read_document(
        self, document: Document, method: Method, progress: Progress | None = None
    ) -> DocumentMemory:
        """The memory of a document, which is not put into it.

        Raises:
            InputError: this method reads the document again for every question, so that no memory
                can stand for it; or the states are not finite.
        """
        with telling(progress, self.model, len(document.ids)):
            if isinstance(method, Chunks):
                return document.chunk_memory(method)
            return self._read(ReadJob([document.ids], method))

    def read_rows(self, rows: Sequence[Sequence[int]], method: Chunks) -> DocumentMemory:
        """The states behind a document's chunks, each a row of tokens.

        Raises:
            InputError: the states are not finite.
        """
        return self._read(ReadJob(rows, method, is_cut=True))

    def run_by(self, loop: EngineLoop | None) -> None:
        """From now on a loop runs the model for this reader, from any thread; None: it does again.

        Raises:
            InputError: another loop does already.
        """
        if loop is not None and self._loop is not None:
            raise InputError("another EngineLoop runs this reader; close that, or make a Reader")
        self._loop = loop

    def _read(self, job: ReadJob) -> DocumentMemory:
        """The memory that a reading leaves."""
        if self._loop is not None:
            return self._loop.read(job).result()
        with torch.inference_mode():
            return finish(read(self.model, job, PassOptions(self.piece_length)))

    def encoded(self, document: str | Path, method: AskedMethod = None) -> Document:
        """A document as tokens, not yet read; see `read`."""
        return self._document(document, self._resolved(method))

    def _document(self, given: str | Path, method: Method, prefix: str = "") -> Document:
        """A text or a file as tokens, not yet read; and what stands before it."""
        if isinstance(given, Path):
            given = read_text(given)
        if not isinstance(given, str):
            raise InputError(f"the document {given!r} is no text; give a str, a Path or a Document")
        if not given.strip():
            raise InputError("the document is empty; it needs at least one word")
        found = Document(self, prefix + given, *encode(self.tokenizer, prefix + given), method)
        found.opening = sum(start < len(prefix) or not stop for start, stop in found.offsets)
        return found

    def _check(self, ask: Ask) -> Method:
        """The method in force; InputError for what is wrong, files and texts unread."""
        ask.check()
        if isinstance(ask.document, Document):
            if ask.document.reader.model is not self.model:
                raise InputError(
                    "the document was read by another model; read it with this Reader, or give "
                    "its text"
                )
            if ask.method is None:
                return ask.document.method
        return self._resolved(ask.method, has_document=ask.document is not None)

    def _resolved(self, method: AskedMethod, has_document: bool = True) -> Method:
        if method is not None:
            return resolve_method(self.model, method)
        if self.is_untrained and not has_document:
            return Plain()
        return self.method

    def request_of(self, ask: Ask, known: Known) -> Made:
        """An ask as the engine takes it, and what its answer is made with.

        Args:
            known: the texts and files of asks under way, encoded; this one's is added.
        """
        method = self._check(ask)
        if ask.prompt is not None:
            if method.needs_text or isinstance(method, Chunks):
                raise InputError(
                    f"the method {method.name} chooses parts of a document for a question, and a "
                    "prompt in one part has neither: give document and question, or another method"
                )
            prompt = self._document(ask.prompt, method)
            return Made(Request(prompt=prompt.ids, options=ask.options, method=method), prompt)
        document = ask.document
        if not isinstance(document, Document):
            assert document is not None
            key = (ask.prefix, document)
            found = known.get(key)
            if found is None:
                found = known[key] = self._document(document, method, ask.prefix)
            document = found
        assert ask.question is not None
        question = fill_template(ask.template or self.model.config.question_template, ask.question)
        if isinstance(method, Chunks):
            return self._of_chunks(document, ask.question, question, ask.options, method)
        ids, left, memory = document.ids, None, document.memory
        if isinstance(method, Bm25):
            left = left_by_words(document, ask.question, method)
            ids, memory = [ids[place] for place in left], None
        if document.ids and memory is not None and not serves(memory, method):
            memory = None  # the document is read anew
        request = Request(
            document=ids if memory is None else None,
            memory=memory,
            question=question,
            options=ask.options,
            method=method.reader if isinstance(method, Bm25) else method,
        )
        return Made(request, document, method, left)

    def _of_chunks(
        self,
        document: Document,
        asked: str,
        question: str,
        options: SamplingOptions,
        method: Chunks,
    ) -> Made:
        """A question to the chunks of a document that may answer it.

        Args:
            asked: the question's own words, by which BM25 ranks; `question` is how it is written.
        """
        ranges = document.chunks(method.tokens)
        which = None
        if method.candidates is not None and method.candidates < len(ranges):
            texts = [document.text_range(*tokens).text for tokens in ranges]
            which = best_of(texts, asked, method.candidates)
        memory = document.chunk_memory(method, which)
        request = Request(memory=memory, question=question, options=options, method=method)
        places = ranges if which is None else [ranges[number] for number in which]
        return Made(request, document, method, chunks=places)

    def _answer_each(
        self, asks: list[tuple[int, Ask]], slots: int, returns_errors: bool
    ) -> Iterator[tuple[int, Answer]]:
        """See `answer_each`; after a step that failed each ask alone, to find whose it was."""
        engine = self._ready_engine(slots)
        waiting = list(reversed(asks))
        known: Known = WeakValueDictionary()
        under_way: dict[Job, tuple[int, Ask, Made]] = {}
        last: Ask | None = None
        try:
            while waiting or under_way:
                # all questions of one document come together, so that it is read once for them
                while waiting and (
                    len(under_way) < slots + LOOK_AHEAD or _is_same(last, waiting[-1][1])
                ):
                    number, ask = waiting.pop()
                    last = ask
                    try:
                        made = self.request_of(ask, known)
                        under_way[engine.submit(made.request)] = (number, ask, made)
                    except InputError as error:
                        if not returns_errors:
                            raise
                        yield number, Answer.failed(error)
                for job in engine.step() if under_way else []:
                    if not isinstance(job, Job) or not job.is_finished or job not in under_way:
                        continue
                    number, ask, made = under_way.pop(job)
                    failure = job.error
                    if failure is None:
                        yield number, made.answer(job.completion)
                    elif not returns_errors or not isinstance(failure, OF_ASK_OR_MACHINE):
                        raise failure
                    elif isinstance(failure, InputError) or not job.token_ids or slots == 1:
                        yield number, Answer.failed(failure)
                    else:  # a step for many failed
                        yield from self._answer_each([(number, ask)], 1, returns_errors)
        finally:
            engine.cancel(*under_way)


def _is_same(last: Ask | None, ask: Ask) -> bool:
    """Whether two asks are about one document."""
    return last is not None and ask.document is not None and last.document == ask.document
