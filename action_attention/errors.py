"""The one exception that programs turn into a sentence."""

import errno


class UserError(ValueError):
    """Something that the user can mend: the message is one sentence that names the thing and the remedy."""


def remedy(error: OSError) -> str:
    """What to do about a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    if error.errno == errno.ENOENT:
        return "its folder was removed meanwhile"
    return "see that it can be written"


def first_line(error: Exception) -> str:
    """What a library's exception says, short enough for a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
