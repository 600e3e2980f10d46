"""Chat: rows of `messages` as a prompt and a response, in the words of the tokenizer's template."""

from __future__ import annotations

from typing import Any

from remamba.errors import InputError
from remamba.json_lines import check_encodable
from remamba.text import chat_text, has_chat_template

ROLES = ("system", "user", "assistant")


class Chat:
    """Turns messages into texts.

    The last message is the response; all before it is the prompt. A tokenizer with a chat template
    writes both. One without (most Mamba models) takes one question, with or without a system
    message before it (`remamba.text.plain_chat_template`).

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.rows = 0
        """How many rows were turned into texts."""

    def texts(self, messages: Any, where: str) -> tuple[str, str]:
        """The prompt and the response.

        Raises:
            InputError: they are no list of {"role", "content"} that ends with the assistant, or
                need a template that the tokenizer lacks.
        """
        _check(messages, where)
        roles = [message["role"] for message in messages[:-1]]
        has_template = has_chat_template(self.tokenizer)
        if not has_template and roles not in (["user"], ["system", "user"]):
            raise InputError(
                f"{where}: {len(messages)} messages ({', '.join(roles)}, assistant) need a "
                "chat template, which the tokenizer lacks; give one question and its answer"
            )
        self.rows += 1
        response = messages[-1]["content"]
        prompt = chat_text(self.tokenizer, messages[:-1], where=where)
        if has_template:
            whole = chat_text(self.tokenizer, messages, where=where, is_prompt=False)
            if whole.startswith(prompt):
                # the template's own end of a turn; training adds the end of the text itself
                response = whole[len(prompt) :].rstrip("\n").removesuffix(self.tokenizer.eos_token)
        return prompt, response


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
