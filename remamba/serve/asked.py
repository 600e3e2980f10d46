"""From the body of a request to what is asked of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from remamba.engine.answer import Ask
from remamba.engine.document import Document
from remamba.engine.request import Request
from remamba.engine.sampling import SamplingOptions
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.chunks import Chunks
from remamba.methods.plain import Plain
from remamba.serve.chat import AS_IT_STANDS, chat_prompt
from remamba.serve.documents import Documents
from remamba.serve.errors import refused
from remamba.serve.limits import Client
from remamba.serve.models import Models
from remamba.serve.schemas import ChatRequest, CompletionRequest, FileReference, Sampled
from remamba.serve.settings import ServeSettings
from remamba.text import Encoded, encode, text_of

TEXT_LIMIT = 16
"""Most characters of a text for each token that a prompt may have: longer ones are not encoded."""


@dataclass(eq=False)
class Question:
    """A question about a document."""

    document: Document
    text: str
    template: str | None
    method: Method
    is_kept: bool
    """The document's memory is kept for questions to come."""
    file_id: str | None = None
    """The uploaded file that is all of the document."""
    start: int = 0
    """Where the client's text begins in the document, see `ChatPrompt.start`."""

    def ask(self, options: SamplingOptions, document: Document) -> Ask:
        """For the loop; `document` is the one to be asked, with its memory if there is one."""
        return Ask(document, self.text, method=self.method, options=options, template=self.template)


@dataclass(eq=False)
class Prompt:
    """A prompt in one part."""

    encoded: Encoded
    text: str
    method: Method
    logprobs: int | None = None
    """Of the prompt's own tokens."""

    def request(self, options: SamplingOptions, client: Client) -> Request:
        """For the loop."""
        return Request(
            prompt=self.encoded.ids, options=options, method=self.method, client=client.name,
            prompt_logprobs=self.logprobs,
        )  # fmt: skip


@dataclass(eq=False)
class Asked:
    """All that one request asks."""

    model: str
    client: Client
    items: Sequence[Question | Prompt]
    options: SamplingOptions
    count: int
    """Answers of each item."""
    echo: bool = False
    is_silent: bool = False
    """Nothing is to be written (max_tokens 0): one token is drawn and left out."""

    @property
    def tokens(self) -> int:
        """About how many tokens are read for it."""
        documents = {
            id(item.document): len(item.document)
            for item in self.items
            if isinstance(item, Question)
        }
        prompts = (len(item.encoded.ids) for item in self.items if isinstance(item, Prompt))
        return sum(documents.values()) + sum(prompts)


class Asking:
    """Turns bodies into what is asked; long texts are encoded here, so it wants a thread.

    Args:
        text_of_file: the text of a client's uploaded file; it raises ApiError.
    """

    def __init__(
        self,
        models: Models,
        documents: Documents,
        tokenizer: Any,
        settings: ServeSettings,
        text_of_file: Callable[[Client, str], str],
    ):
        self._models, self._documents, self._tokenizer = models, documents, tokenizer
        self._settings, self._text_of_file = settings, text_of_file

    def completion(self, body: CompletionRequest, client: Client) -> Asked:
        """What a completion asks.

        Raises:
            ApiError, InputError: it cannot be used.
        """
        method = self._models.of(body.model)
        prompts = prompts_of(body)
        asked_for = 16 if body.max_tokens is None else body.max_tokens
        is_silent = asked_for == 0
        if is_silent and not body.echo:
            raise refused(
                "max_tokens = 0 writes nothing: give 1 or above, or echo=true", "max_tokens"
            )
        count = body.n or 1
        if body.best_of not in (None, count):
            raise refused(f"best_of = {body.best_of} is not built; leave it out", "best_of")
        options = self._options(body, max(asked_for, 1), "max_tokens", body.logprobs)
        if body.document is not None:
            if body.echo:
                raise refused("echo is for prompts in one part; leave document out", "echo")
            items = self._questions(body.document, prompts, method, client)
        else:
            reading = self._models.of_prompt(body.model)
            logprobs = body.logprobs if body.echo else None
            if logprobs is not None and not isinstance(reading, Plain):
                raise refused(
                    f"echo with logprobs: only plain Mamba reads a prompt as it stands; ask the "
                    f"model {self._models.name}:plain", "echo",
                )  # fmt: skip
            items = [self._prompt(prompt, reading, logprobs) for prompt in prompts]
        return Asked(body.model, client, items, options, count, bool(body.echo), is_silent)

    def chat(self, body: ChatRequest, client: Client) -> Asked:
        """What a chat asks.

        Raises:
            ApiError, InputError: it cannot be used.
        """
        method = self._models.of(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise refused("top_logprobs needs logprobs=true", "top_logprobs")
        most, name = body.max_completion_tokens, "max_completion_tokens"
        if most is None:
            most, name = body.max_tokens, "max_tokens"
        if most == 0:
            raise refused(f"{name} = 0 writes nothing: give 1 or above", name)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        options = self._options(body, most or self._settings.max_new_tokens, name, logprobs)
        found = chat_prompt(
            body.messages, self._tokenizer, lambda file_id: self._text_of_file(client, file_id)
        )
        item: Question | Prompt
        if found.document is not None:
            item = self._question(
                found.document, found.question, found.template, method, client, found.is_marked
            )
            item.file_id, item.start = found.file_id, found.start
        else:
            text = found.question
            if found.template is None:
                template = self._models.question_template
                text = template.replace("{question}", text).lstrip()
            item = self._prompt(text, self._models.of_prompt(body.model), None)
        return Asked(body.model, client, [item], options, body.n or 1)

    def _options(
        self, body: Sampled, most: int, name: str, logprobs: int | None
    ) -> SamplingOptions:
        limit = self._settings.max_new_tokens
        if most > limit:
            raise refused(
                f"{name} = {most} is above {limit}, the most that this server writes "
                "(--max-new-tokens); ask for fewer", name,
            )  # fmt: skip
        temperature = body.temperature
        if temperature is None:
            temperature = self._settings.temperature
        seed = body.seed
        if seed is None:
            seed = secrets.randbits(48)
        return SamplingOptions(
            max_new_tokens=most,
            temperature=float(temperature),
            top_p=1.0 if body.top_p is None else float(body.top_p),
            top_k=max(body.top_k or 0, 0),
            stop=body.stops,
            seed=seed,
            logprobs=logprobs,
        )

    def _questions(
        self,
        document: str | FileReference,
        prompts: Sequence[str | list[int]],
        method: Method,
        client: Client,
    ) -> list[Question | Prompt]:
        file_id = None
        if isinstance(document, FileReference):
            file_id = document.file_id
            document = self._text_of_file(client, file_id)
        found: list[Question | Prompt] = []
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise refused("prompts about a document are texts; send no token ids", "prompt")
            if not prompt.strip():
                raise refused("prompt is empty; it needs at least one word", "prompt")
            one = self._question(document, prompt, AS_IT_STANDS, method, client, True)
            one.file_id = file_id
            if found and isinstance(found[0], Question):
                one.document = found[0].document
            found.append(one)
        return found

    def _question(
        self,
        document: str,
        question: str,
        template: str | None,
        method: Method,
        client: Client,
        is_marked: bool,
    ) -> Question:
        self._check_length(document, "the document")
        self._check_length(question, "the question")
        read = self._documents.encoded(document, self._models.reading(method), client)
        self._check_tokens(len(read), "the document")
        is_kept = is_marked or isinstance(method, Chunks)
        is_kept = self._documents.comes_again(read, client) or is_kept
        return Question(read, question, template, method, is_kept)

    def _prompt(self, prompt: str | list[int], method: Method, logprobs: int | None) -> Prompt:
        if isinstance(prompt, str):
            if not prompt:
                raise refused("prompt is empty; it needs at least one character", "prompt")
            self._check_length(prompt, "the prompt")
            encoded, text = encode(self._tokenizer, prompt), prompt
        else:
            largest = self._models.vocab_size - 1
            if max(prompt) > largest:
                raise refused(
                    f"prompt has token {max(prompt)}, and the model knows 0 to {largest}", "prompt"
                )
            encoded, text = Encoded(prompt, []), text_of(self._tokenizer, prompt)
        if not encoded.ids:
            raise InputError("prompt has no tokens; it needs at least one word")
        self._check_tokens(len(encoded.ids), "the prompt")
        return Prompt(encoded, text, method, logprobs)

    def _check_length(self, text: str, what: str) -> None:
        most = self._settings.max_prompt_tokens
        if len(text) > most * TEXT_LIMIT:
            raise refused(
                f"{what} has {len(text):,} characters, and at most {most:,} tokens are read "
                "(--max-prompt-tokens); send less", code="context_length_exceeded",
            )  # fmt: skip

    def _check_tokens(self, count: int, what: str) -> None:
        most = self._settings.max_prompt_tokens
        if count > most:
            raise refused(
                f"{what} has {count:,} tokens, and at most {most:,} are read "
                "(--max-prompt-tokens); send less", code="context_length_exceeded",
            )  # fmt: skip


def prompts_of(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a completion, each a text or tokens."""
    given = body.prompt
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [[*given]]  # type: ignore[list-item]
    return [*given]  # type: ignore[list-item]
