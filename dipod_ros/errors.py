# SPDX-License-Identifier: Apache-2.0
"""The one exception that users are meant to read; imports nothing."""


class UserError(Exception):
    """A mistake that the user can mend: one line that says what to change.

    Commands and nodes print it without a traceback and exit with a code that is not 0.
    """
