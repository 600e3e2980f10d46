"""A reader: documents and questions in, answers out, all of it text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch

from remamba.compression_config import CompressionConfig
from remamba.engine.answer import Answer, Ask, AskedMethod
from remamba.engine.document import Document
from remamba.engine.engine import Engine, TextIterator
from remamba.engine.kept_words import kept_words
from remamba.engine.loading import CPU_PIECE, GPU_PIECE, resolve_device, resolve_dtype
from remamba.engine.request import Completion, Job, Request, fill_template
from remamba.errors import InputError
from remamba.execution.passes import not_finite
from remamba.methods.base import Method
from remamba.methods.memory import DocumentMemory
from remamba.methods.remamba import ReMamba
from remamba.methods.shorten import Shorten
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.pretrained import EMBEDDED, quiet_transformers
from remamba.text import decode_with_offsets, encode, load_tokenizer, read_text

LOOK_AHEAD = 64
"""How many asks wait in the engine beyond those in its slots, so that alike ones meet."""

Progress = Callable[[int, int], None]
"""Called while a document is read, with the tokens read so far and all there are."""


def resolve_method(model: ReMambaForCausalLM, wanted: AskedMethod) -> Method:
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
        model: a model directory, a hub name, an embedded model's name, or a loaded model.
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
        model: str | Path | ReMambaForCausalLM = EMBEDDED,
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
                loaded = ReMambaForCausalLM.from_pretrained(model, dtype=numbers).to(place)
                if tokenizer is None:
                    tokenizer = load_tokenizer(model, loaded.config.vocab_size)
            self.name = str(model)
        else:
            if tokenizer is None:
                raise InputError("a loaded model comes without a tokenizer; give tokenizer=")
            if (device, dtype) != ("auto", "auto"):
                raise InputError(
                    "device and dtype are for a model that is loaded here; move a loaded one "
                    "itself: model.to(...)"
                )
            self.name, loaded = model.name_or_path or type(model).__name__, model
        self.model: ReMambaForCausalLM = loaded.eval()
        self.tokenizer = tokenizer
        on_gpu = self.model.device.type == "cuda"
        self.piece_length = piece_length or (GPU_PIECE if on_gpu else CPU_PIECE)
        self.slots = slots
        self.seconds = time.perf_counter() - begun
        """Spent on loading."""
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        model, dtype = self.model, str(self.model.dtype).removeprefix("torch.")
        kind, count = model.config.backbone_type, model.num_parameters()
        return f"Reader({self.name!r}, {kind}, {count:,} parameters, {dtype} on {model.device})"

    def read(
        self, document: str | Path, *, method: AskedMethod = None, progress: Progress | None = None
    ) -> Document:
        """A document, read once where its settings allow that.

        Args:
            document: the text itself, or the Path of a text file (UTF-8).
            method: None is the model's own; see `AskedMethod`.
            progress: called with the tokens read so far, and all there are.

        Raises:
            InputError: the text is empty or cannot be read, the method is unknown, or the
                document's states are not finite.
        """
        found = self._document(document, resolve_method(self.model, method))
        if found.method.serves_memory:
            begun = time.perf_counter()
            found.memory = self.read_memory(found.ids, found.method, progress)
            found.seconds = time.perf_counter() - begun
        return found

    def load(self, path: str | Path) -> Document:
        """The document of a file that `Document.save` or `remamba read` wrote.

        Its text is that of its tokens; it is empty where the file holds none.

        Raises:
            InputError: there is no such memory, it is truncated, or another model's.
        """
        memory = self.model.load_memory(path)
        if memory.batch_size != 1:
            raise InputError(
                f"{path} holds {memory.batch_size} documents; save one of them alone: "
                "memory.select(torch.tensor([i])).save(...)"
            )
        text, ids, offsets = "", list[int](), list[tuple[int, int]]()
        if memory.input_ids is not None:
            ids = memory.input_ids[0, : int(memory.lengths[0])].tolist()
            text, offsets = decode_with_offsets(self.tokenizer, ids)
        return Document(self, text, ids, offsets, memory.method, memory)

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
        request, document = self._request(ask, WeakValueDictionary())
        text = self._ready_engine().stream(request)
        return AnswerStream(text, lambda done: _answer(done, request, document))

    def _ready_engine(self, slots: int | None = None) -> Engine:
        """The engine that is kept from call to call; or one of other slots, for once."""
        if slots not in (None, self.slots):
            return Engine(self.model, self.tokenizer, slots, piece_length=self.piece_length)
        if self._engine is None:
            self._engine = Engine(
                self.model, self.tokenizer, self.slots, piece_length=self.piece_length
            )
        return self._engine

    def read_memory(
        self,
        ids: Sequence[int],
        method: Method,
        progress: Progress | None = None,
    ) -> DocumentMemory:
        """The memory of a document's tokens.

        Raises:
            InputError: this method reads the document again for every question, so that no memory
                can stand for it; or the states are not finite.
        """
        tensor = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode(), _telling(progress, self.model, len(ids)):
            memory = self.model.read(tensor, method=method, piece_length=self.piece_length)
            states = (memory.hidden, *memory.cache.tensors().values())
            if not all(bool(torch.isfinite(state).all()) for state in states):
                raise not_finite("the document's states", self.model.dtype)
        return memory

    def _document(self, given: str | Path, method: Method) -> Document:
        """A text or a file as tokens, not yet read."""
        if isinstance(given, Path):
            given = read_text(given)
        if not isinstance(given, str):
            raise InputError(f"the document {given!r} is no text; give a str, a Path or a Document")
        if not given.strip():
            raise InputError("the document is empty; it needs at least one word")
        return Document(self, given, *encode(self.tokenizer, given), method)

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
        return resolve_method(self.model, ask.method)

    def _request(
        self, ask: Ask, known: WeakValueDictionary[str | Path, Document]
    ) -> tuple[Request, Document]:
        """An ask as the engine takes it, and the text that its kept words are words of.

        Args:
            known: the texts and files of asks under way, encoded; this one's is added.
        """
        method = self._check(ask)
        if ask.prompt is not None:
            prompt = Document(self, ask.prompt, *encode(self.tokenizer, ask.prompt), method)
            return Request(prompt=prompt.ids, options=ask.options, method=method), prompt
        document = ask.document
        if not isinstance(document, Document):
            assert document is not None
            found = known.get(document)
            if found is None:
                found = known[document] = self._document(document, method)
            document = found
        assert ask.question is not None
        question = fill_template(ask.template or self.model.config.question_template, ask.question)
        memory = document.memory
        if document.ids and memory is not None and not _serves(memory, method):
            memory = None  # the document is read anew
        made = Request(
            document=document.ids if memory is None else None,
            memory=memory,
            question=question,
            options=ask.options,
            method=method,
        )
        return made, document

    def _answer_each(
        self, asks: list[tuple[int, Ask]], slots: int, returns_errors: bool
    ) -> Iterator[tuple[int, Answer]]:
        """See `answer_each`; after an error of the machine each ask alone, to find whose it was."""
        engine = self._ready_engine(slots)
        waiting = list(reversed(asks))
        known: WeakValueDictionary[str | Path, Document] = WeakValueDictionary()
        under_way: dict[Job, tuple[int, Ask, Document]] = {}
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
                        request, document = self._request(ask, known)
                        under_way[engine.submit(request)] = (number, ask, document)
                    except InputError as error:
                        if not returns_errors:
                            raise
                        yield number, Answer.failed(error)
                try:
                    moved = engine.step() if under_way else []
                except (InputError, RuntimeError) as error:  # out of memory among them
                    engine.cancel(*under_way)
                    self._engine = None  # its states may be half of this step and half of the last
                    left = [(number, ask) for number, ask, _ in under_way.values()]
                    under_way.clear()
                    if not returns_errors:
                        raise
                    if len(left) == 1:
                        yield left[0][0], Answer.failed(error)
                    else:
                        for one in left:
                            yield from self._answer_each([one], 1, returns_errors)
                    engine = self._ready_engine(slots)
                    continue
                for job in moved:
                    if not job.is_finished or job not in under_way:
                        continue
                    number, _, document = under_way.pop(job)
                    if job.error is None:
                        yield number, _answer(job.completion, job.request, document)
                    elif returns_errors:
                        yield number, Answer.failed(job.error)
                    else:
                        raise job.error
        finally:
            engine.cancel(*under_way)


class AnswerStream:
    """An answer's text, piece by piece as it becomes final; leaving off early cancels it."""

    def __init__(self, text: TextIterator, finish: Callable[[Completion], Answer]):
        self._text = text
        self._finish = finish

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        return next(self._text)

    @property
    def answer(self) -> Answer | None:
        """The whole answer; None until it is there."""
        done = self._text.completion
        return None if done is None else self._finish(done)

    def close(self) -> None:
        """Leave off."""
        self._text.close()


def _is_same(last: Ask | None, ask: Ask) -> bool:
    """Whether two asks are about one document."""
    return last is not None and ask.document is not None and last.document == ask.document


def _serves(memory: DocumentMemory, method: Method) -> bool:
    """Whether a memory can answer what is asked by a method, or its text has to be read anew."""
    if not method.serves_memory:
        return False
    return (not isinstance(method, Shorten) and not isinstance(memory.method, Shorten)) or (
        method == memory.method
    )


def _kept(done: Completion, request: Request, document: Document) -> list[tuple[int, float]] | None:
    """Position and score of each kept token, in the document as it is known."""
    memory = request.memory
    if done.kept is None or memory is None or not isinstance(memory.method, Shorten):
        return done.kept
    whole = torch.tensor([len(document.ids)])
    if int(memory.lengths[0]) == int(whole):
        return done.kept
    span = memory.method.left_out(whole, whole)
    start, length = int(span.start), int(span.length)
    return [(at if at < start else at + length, score) for at, score in done.kept]


def _answer(done: Completion, request: Request, document: Document) -> Answer:
    """A completion with the kept words of the text it was made from."""
    kept, method = _kept(done, request, document), request.method
    assert isinstance(method, Method), "requests of a reader name their method"
    return Answer(
        text=done.text,
        kept=None if kept is None else tuple(kept_words(document.text, document.offsets, kept)),
        seconds=done.seconds,
        method=method.name,
        finish_reason=done.finish_reason,
        prompt_tokens=done.prompt_tokens,
        token_ids=done.token_ids,
        kept_tokens=kept,
        scored=done.scored,
    )


@contextmanager
def _telling(progress: Progress | None, model: ReMambaForCausalLM, total: int) -> Iterator[None]:
    """`progress` hears of every piece that the model reads."""
    if progress is None:
        yield
        return
    done = 0

    def advance(_: Any, __: Any, hidden: torch.Tensor) -> None:
        nonlocal done
        done += hidden.shape[1]
        progress(done, total)

    hook = model.backbone.register_forward_hook(advance)
    try:
        yield
    finally:
        hook.remove()
