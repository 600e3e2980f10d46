"""`remamba serve`: OpenAI's interface to one model, over HTTP."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from remamba.commands.model_options import ModelOptions
from remamba.errors import InputError
from remamba.serve.settings import ServeSettings


@dataclass(frozen=True)
class Args:
    """Serve a model to any client of OpenAI's interface: completions, chats, files, streams.

    A file that was uploaded is read once; every question about it goes on from its memory. The
    model's name reads as the model's own settings say, NAME:plain is plain Mamba, and NAME:METHOD
    any other way of reading. docs/SERVING.md tells the rest.

    Example: remamba serve --model models/remamba-2.8b --store served --api-key-file keys.txt
    """

    serving: OmitArgPrefixes[ServeSettings] = field(default_factory=ServeSettings)
    reading: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)


def run(args: Args) -> int:
    """Serves until it is told to end."""
    settings = args.serving
    settings.keys()
    try:
        from remamba.serve.running import address_of, listen, serve
    except ImportError as error:
        raise InputError(
            f"the server needs {error.name}; install it with: pip install 'remamba[serve]'"
        ) from error
    from remamba.commands.reading import tell_untrained
    from remamba.engine.reader import UNTRAINED_MEMORY
    from remamba.serve.host import Host

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("remamba.serve").setLevel(logging.INFO)
    with listen(settings) as listening:
        reader = args.reading.load(slots=settings.slots)
        is_told = args.reading.method is not None or args.reading.method_options()
        method = None if reader.is_untrained and not is_told else args.reading.chosen(reader)
        if method is None:
            tell_untrained(reader, UNTRAINED_MEMORY)
        host = Host(reader, settings, method)
        listening.listen()
        print(
            f"{host.models.name} answers at {address_of(listening)}/v1 ({reader!r})",
            file=sys.stderr,
            flush=True,
        )
        serve(host, listening)
    return 0
