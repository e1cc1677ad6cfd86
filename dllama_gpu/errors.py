"""The one exception a user is meant to read."""

from __future__ import annotations


class DllamaError(Exception):
    """A mistake or a misfortune that is explained to the user as one sentence, without a traceback.

    The message names the thing, the value found, the value wanted and the way out.
    """
