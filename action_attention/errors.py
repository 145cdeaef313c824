"""The one exception that programs turn into a sentence."""


class UserError(ValueError):
    """Something that the user can mend: the message is one sentence that names the thing and the remedy."""
