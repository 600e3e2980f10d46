"""The names under which one model answers: its own, and one for each way of reading."""

from __future__ import annotations

from typing import Any

from remamba.engine.made import serves_by
from remamba.engine.reader import UNTRAINED_MEMORY, Reader, resolve_method
from remamba.errors import InputError
from remamba.fields import shown
from remamba.methods.base import METHODS, Method
from remamba.methods.chunks import Chunks
from remamba.methods.plain import Plain
from remamba.serve.errors import ApiError


class Models:
    """Which method a model's name stands for.

    Args:
        name: the model's; NAME:METHOD reads by another method.
        method: how it reads where only its name is given; None: as a document is read that is
            kept for questions to come.
    """

    def __init__(self, reader: Reader, name: str, method: Method | None):
        self._reader, self.name = reader, name
        if method is None:
            method = UNTRAINED_MEMORY if reader.is_untrained else reader.method
        self.method = method
        self._found: dict[str, Method] = {name: method}
        for word in METHODS:
            try:
                self._found[f"{name}:{word}"] = resolve_method(reader.model, word)
            except InputError:  # it needs a table, or training
                continue

    @property
    def question_template(self) -> str:
        """How a question is written where nothing else is said."""
        return self._reader.model.config.question_template

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""
        return self._reader.model.config.vocab_size

    def listed(self) -> list[str]:
        """All names."""
        return list(self._found)

    def of(self, name: str) -> Method:
        """The method of a name.

        Raises:
            ApiError: 404, there is no such model.
        """
        if name in self._found:
            return self._found[name]
        own, _, word = name.partition(":")
        if own == self.name and "+" in word:  # last+remamba
            try:
                return resolve_method(self._reader.model, word)
            except InputError as error:
                raise ApiError(404, str(error), param="model", code="model_not_found") from error
        raise ApiError(
            404, f"there is no model {shown(name)}; there is {', '.join(self._found)}",
            param="model", code="model_not_found",
        )  # fmt: skip

    def of_prompt(self, name: str) -> Method:
        """The method that reads a prompt in one part.

        A model whose own way takes a document apart from its question reads it as plain Mamba.
        """
        method = self.of(name)
        needs = method.wants_question or method.needs_text or isinstance(method, Chunks)
        return Plain() if name == self.name and needs else method

    def reading(self, method: Method) -> Method:
        """How a document is read for questions by a method: one memory serves all that it can."""
        own = self.method
        return own if own.serves_memory and serves_by(own, method) else method

    def told(self, name: str, created: int) -> dict[str, Any]:
        """A model as GET /v1/models tells it."""
        return {
            "id": name, "object": "model", "created": created, "owned_by": "remamba",
            "method": self.of(name).to_dict(),
        }  # fmt: skip
