"""An interruption that a library made an error of its own."""


def interrupted(error: BaseException) -> bool:
    """Whether an error came of Ctrl-C or a signal: pydantic makes a ValueError of it in writing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__
    return False
