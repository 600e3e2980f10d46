"""The one exception for what a user gave and what cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names the value, the file if there is one, and the mend. The
    command line prints it and exits with 2; a library user can catch it as a `ValueError`.
    """
