"""What may be asked: the bodies of requests. A field that is not known is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from remamba.engine.likelihoods import MOST_LIKELIEST
from remamba.serve.errors import refused

MOST_SEED = 2**63 - 1
MOST_PROMPTS = 2048


def _whole(text: str) -> str:
    """Refuse halves of surrogate pairs, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} is half of a surrogate pair; send whole characters"
        ) from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=128)]
Seed = Annotated[int, Field(ge=-MOST_SEED, le=MOST_SEED)]
Tokens = Annotated[int, Field(ge=0, le=2**31)]
TokenId = Annotated[int, Field(ge=0, le=2**31)]
Likeliest = Annotated[int, Field(ge=0, le=MOST_LIKELIEST)]

WITHOUT_EFFECT = {
    "user", "metadata", "safety_identifier", "store", "prompt_cache_key", "prompt_cache_retention",
    "service_tier",
}  # fmt: skip
"""Fields that change no answer, whatever they are."""
ALLOWED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "min_p": (0,),
}
"""Fields that are not built, with the values by which they ask for nothing."""
MENDS = {
    "tools": "leave tools out: this server calls none",
    "response_format": "ask for text: this server forces no format",
    "logit_bias": "leave it out: tokens are not weighted here",
    "presence_penalty": "leave it out: penalties are not built",
    "frequency_penalty": "leave it out: penalties are not built",
}


class Body(BaseModel):
    """A JSON object; values are of the kind that is asked for, and no other is turned into it."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    def unknown(self) -> dict[str, Any]:
        """The fields that are not known and would ask for something."""
        found = {}
        for name, value in (self.model_extra or {}).items():
            if value is None or name in WITHOUT_EFFECT:
                continue
            if any(type(value) is type(one) and value == one for one in _same(name)):
                continue
            found[name] = value
        return found

    def check_known(self) -> None:
        """Raise ApiError for the first field that is not known."""
        for name in self.unknown():
            mend = MENDS.get(name, "leave it out, or start the server with --lenient")
            raise refused(f"{name!r} is not a field that this server knows; {mend}", name)


def _same(name: str) -> list[Any]:
    """The values that ask for nothing, whole numbers also as others."""
    values: list[Any] = []
    for value in ALLOWED.get(name, ()):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        values += [value, float(value)] if is_number else [value]
    return values


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Breakpoint(Body):
    """Marks the end of what is to be kept for questions to come."""

    mode: Literal["explicit"] = "explicit"


class Sampled(Body):
    """What completions and chats share."""

    model: Text
    temperature: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    n: Count | None = None
    seed: Seed | None = None
    stop: (
        Annotated[Text, Field(min_length=1)]
        | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=16)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    remamba_kept: bool | None = None
    """Also tell which words were kept."""

    @property
    def stops(self) -> tuple[str, ...]:
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class FileReference(Body):
    """A file that was uploaded."""

    file_id: Text


class CompletionRequest(Sampled):
    """What POST /v1/completions takes."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_PROMPTS),
        ]
    )
    max_tokens: Tokens | None = None
    logprobs: Likeliest | None = None
    echo: bool | None = None
    best_of: Count | None = None
    document: Text | FileReference | None = None
    """A document that the prompts are questions about, as they stand."""


class FileContent(Body):
    file_id: Text | None = None
    file_data: Text | None = None
    filename: Text | None = None


class Part(Body):
    """A part of a message."""

    type: Text
    text: Text | None = None
    file: FileContent | None = None
    prompt_cache_breakpoint: Breakpoint | None = None


class Message(Body):
    role: Text
    content: Text | list[Part] | None = None
    name: Text | None = None


class ChatRequest(Sampled):
    """What POST /v1/chat/completions takes."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None


class TokenizeRequest(Body):
    """What POST /tokenize takes."""

    model: Text | None = None
    prompt: Text
    add_special_tokens: bool | None = None


class DetokenizeRequest(Body):
    """What POST /detokenize takes."""

    model: Text | None = None
    tokens: list[TokenId]
