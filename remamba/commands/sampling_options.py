"""The options of sampling, shared by the commands that write text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from remamba.commands.text_input import unescape

if TYPE_CHECKING:
    from remamba.engine.sampling import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class SamplingArgs:
    """How the text is drawn, and when it ends."""

    max_new_tokens: Annotated[int, arg(metavar="N")] = 64
    """Most tokens to write."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher values draw more freely."""
    top_k: Annotated[int, arg(metavar="K")] = 0
    """Draw from the K likeliest tokens only; 0: from all."""
    top_p: Annotated[float, arg(metavar="P")] = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    stop: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    r"""End before this text; \n is a line break."""
    seed: int = 0
    """Seed of the draws: the same seed, the same text."""

    def options(self) -> SamplingOptions:
        """As the engine takes them.

        Raises:
            InputError: a value is outside its range.
        """
        from remamba.engine.sampling import SamplingOptions

        return SamplingOptions(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=tuple(map(unescape, self.stop)),
            seed=self.seed,
        )
