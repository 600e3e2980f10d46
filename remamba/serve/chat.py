"""Messages as a document and a question behind it: where one ends and the other begins."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.serve.errors import refused
from remamba.serve.schemas import FileContent, Message, Part
from remamba.text import chat_text, has_chat_template, text_of_bytes

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
BETWEEN = "\n\n"
"""What stands between the parts of a document, and between those of a message."""
AS_IT_STANDS = "{question}"
"""The template of a question that is read behind the document exactly as it is."""


class ChatPrompt(NamedTuple):
    """What the messages of a chat ask."""

    document: str | None
    """None: there is nothing but the question."""
    question: str
    template: str | None
    """How the question is written behind the document; None: as the model expects it."""
    is_marked: bool
    """The document is a file, or ends where the client set a breakpoint: it is worth keeping."""
    file_id: str | None = None
    """The uploaded file that is all of the document."""
    start: int = 0
    """Where its one text begins in the document; what stands before is the template's."""


class _Text(NamedTuple):
    """A text in a message."""

    message: int
    text: str
    is_file: bool
    is_end: bool
    """A breakpoint stands behind it."""
    file_id: str | None = None


def chat_prompt(
    messages: Sequence[Message], tokenizer: Any, text_of_file: Callable[[str], str]
) -> ChatPrompt:
    """The document and the question of a chat.

    A tokenizer with a chat template writes all of it: the document ends behind the last file or
    breakpoint, or else before the last text of the user. Without one there is one question, the
    user's last text, and everything else is the document.

    Args:
        text_of_file: the text of an uploaded file; it raises ApiError.

    Raises:
        ApiError: a message or part cannot be used.
        InputError: the chat template refuses the messages.
    """
    roles = [_role(message, f"messages.{i}") for i, message in enumerate(messages)]
    texts = [
        text for i, message in enumerate(messages) for text in _texts(message, i, text_of_file)
    ]
    if not any(text.text.strip() for text in texts):
        raise refused("messages hold no text; they need at least one word", "messages")
    if "user" not in roles:
        raise refused("messages hold none of the user; ask something", "messages")
    if has_chat_template(tokenizer):
        return _by_template(roles, texts, tokenizer)
    return _without_template(roles, texts)


def _without_template(roles: Sequence[str], texts: Sequence[_Text]) -> ChatPrompt:
    asking = len(roles) - 1
    if roles[asking] != "user" or set(roles[:asking]) - {"system"}:
        raise refused(
            f"{len(roles)} messages ({', '.join(roles[:8])}) need a chat template, which this "
            "model's tokenizer lacks; send one message of the user, with system messages before it",
            "messages",
        )
    marked = [i for i, text in enumerate(texts) if text.is_end]
    own = [i for i, text in enumerate(texts) if text.message == asking and not text.is_file]
    if marked:
        documents, questions = texts[: marked[-1] + 1], texts[marked[-1] + 1 :]
    else:
        last = own[-1] if own else len(texts)
        documents = [text for i, text in enumerate(texts) if i != last]
        questions = texts[last : last + 1]
    question = BETWEEN.join(text.text for text in questions)
    if not question.strip():
        raise refused("there is no question: the user's message needs a text part", "messages")
    documents = [text for text in documents if text.text.strip()]
    document = BETWEEN.join(text.text for text in documents) or None
    only = documents[0].file_id if len(documents) == 1 else None
    is_marked = bool(marked) or any(text.is_file for text in documents)
    return ChatPrompt(document, question, None, is_marked and document is not None, only)


def _by_template(roles: Sequence[str], texts: Sequence[_Text], tokenizer: Any) -> ChatPrompt:
    ends = [i + 1 for i, text in enumerate(texts) if text.is_end or text.is_file]
    is_marked = bool(ends)
    asking = max(i for i, role in enumerate(roles) if role == "user")
    own = [i for i, text in enumerate(texts) if text.message == asking and not text.is_file]
    border = ends[-1] if ends else (own[-1] if own else len(texts))
    # a word that nobody writes stands at the border while the template writes the chat
    mark = f"\ue000{secrets.token_hex(8)}\ue000"
    contents: list[list[str]] = [[] for _ in roles]
    for i, text in enumerate(texts):
        begins = mark if i == border and not is_marked else ""
        ended = mark if i + 1 == border and is_marked else ""
        contents[text.message].append(f"{begins}{text.text}{ended}")
    messages = [
        {"role": role, "content": BETWEEN.join(parts)}
        for role, parts in zip(roles, contents, strict=True)
    ]
    whole = chat_text(tokenizer, messages, where="messages")
    before, found, behind = whole.partition(mark)
    has_document = any(text.text.strip() for text in texts[:border])
    if not found or mark in behind or not has_document or not behind.strip():
        return ChatPrompt(None, whole.replace(mark, ""), AS_IT_STANDS, False)
    start, documents = 0, [text.text for text in texts[:border] if text.text.strip()]
    if len(documents) == 1:  # a template may strip it
        inside = documents[0].strip()
        start = before.find(inside) - documents[0].find(inside)
    return ChatPrompt(before, behind, AS_IT_STANDS, is_marked, start=start)


def _role(message: Message, where: str) -> str:
    if message.role not in ROLES:
        raise refused(
            f"{where}.role = {message.role!r}: use one of {', '.join(ROLES)}", f"{where}.role"
        )
    _check_known(message, where)
    return ROLES[message.role]


def _check_known(body: Message | Part | FileContent, where: str) -> None:
    for name in body.unknown():
        raise refused(
            f"{where}.{name} is not a field that this server knows; leave it out", f"{where}.{name}"
        )


def _texts(message: Message, number: int, text_of_file: Callable[[str], str]) -> list[_Text]:
    where = f"messages.{number}.content"
    if message.content is None:
        return []
    if isinstance(message.content, str):
        return [_Text(number, message.content, False, False)]
    found = []
    for i, part in enumerate(message.content):
        place, is_end = f"{where}.{i}", part.prompt_cache_breakpoint is not None
        _check_known(part, place)
        if part.type in ("text", "input_text"):
            if part.text is None:
                raise refused(f"{place}.text is missing", f"{place}.text")
            found.append(_Text(number, part.text, False, is_end))
        elif part.type in ("file", "input_file"):
            text, file_id = _file_text(part.file, f"{place}.file", text_of_file)
            found.append(_Text(number, text, True, is_end, file_id))
        else:
            raise refused(
                f"{place}.type = {part.type!r}: this server reads text and file parts", place
            )
    return found


def _file_text(
    file: FileContent | None, where: str, text_of_file: Callable[[str], str]
) -> tuple[str, str | None]:
    if file is None or (file.file_id is None) == (file.file_data is None):
        raise refused(f"{where} needs either a file_id or file_data", where)
    _check_known(file, where)
    if file.file_id is not None:
        return text_of_file(file.file_id), file.file_id
    assert file.file_data is not None
    data = file.file_data
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(f"{where}.file_data is not base64 ({error})", f"{where}.file_data") from error
    try:
        return text_of_bytes(content, f"{where}.file_data"), None
    except InputError as error:
        raise refused(str(error), f"{where}.file_data") from error
