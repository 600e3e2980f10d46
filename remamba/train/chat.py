"""Chat: rows of `messages` as a prompt and a response, in the words of the tokenizer's template."""

from __future__ import annotations

from typing import Any

from remamba.errors import InputError
from remamba.json_lines import check_encodable
from remamba.text import opening_tokens

ROLES = ("system", "user", "assistant")


class Chat:
    """Turns messages into texts.

    The last message is the response; all before it is the prompt. A tokenizer with a chat template
    writes both. One without (most Mamba models) takes one question, with or without a system
    message before it: the texts as they stand, a blank line between them.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        # training puts it before the prompt; a template that writes it too would double it
        opening = opening_tokens(tokenizer)
        self.opening = tokenizer.decode(opening) if opening else ""

    def texts(self, messages: Any, where: str) -> tuple[str, str]:
        """The prompt and the response.

        Raises:
            InputError: they are no list of {"role", "content"} that ends with the assistant, or
                need a template that the tokenizer lacks.
        """
        _check(messages, where)
        response = messages[-1]["content"]
        if not self.has_template:
            roles = [message["role"] for message in messages[:-1]]
            if roles not in (["user"], ["system", "user"]):
                raise InputError(
                    f"{where}: {len(messages)} messages ({', '.join(roles)}, assistant) need a "
                    "chat template, which the tokenizer lacks; give one question and its answer"
                )
            return "\n\n".join(message["content"] for message in messages[:-1]), response
        apply = self.tokenizer.apply_chat_template
        try:
            prompt = apply(messages[:-1], tokenize=False, add_generation_prompt=True)
            whole = apply(messages, tokenize=False)
        except Exception as error:  # jinja's own, and whatever a template raises
            raise InputError(
                f"{where}: the tokenizer's chat template refuses these messages "
                f"({' '.join(str(error).split())[:120]})"
            ) from error
        if whole.startswith(prompt):
            # the template's own end of a turn; the end-of-text that training adds is not doubled
            response = whole[len(prompt) :].rstrip("\n").removesuffix(self.tokenizer.eos_token)
        return prompt.removeprefix(self.opening), response


def _check(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or len(messages) < 2:
        raise InputError(f"{where}: 'messages' must be a list of a question and its answer")
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise InputError(
                f"{where}: message {i} needs a 'role': {', '.join(ROLES[:-1])} or {ROLES[-1]}"
            )
        content = message.get("content")
        if not isinstance(content, str) or not content:
            raise InputError(f"{where}: message {i} has no text as its 'content'")
        check_encodable(content, "content", f"{where}: message {i}")
    if messages[-1]["role"] != "assistant":
        raise InputError(f"{where}: the last message must be the assistant's: it is what is learnt")
