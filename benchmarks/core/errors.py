"""The ways in which a task ends badly that are foreseen, and the one that is no fault of a task."""


class BadInput(Exception):
    """The user's input cannot be used; the message is one line: what, where, and the mend."""


class Diverged(Exception):
    """A training or its samples became NaN, infinite or absurdly large."""


class OutOfTime(Exception):
    """The time that a run was given is up; what it has begun is kept, and the next run goes on from
    there.
    """


def raise_if_stopped(error: Exception) -> None:
    """Raise the Ctrl-C or SIGTERM that led to an error, if one did.

    What is interrupted in the middle of its work may break on its way out, and Python raises the
    last error. Whoever takes any error for a fault of a task asks this first.
    """
    if stopped := _behind(error):
        raise stopped from None


def _behind(error: BaseException | None) -> BaseException | None:
    if error is None or not isinstance(error, Exception):
        return error
    return _behind(error.__cause__) or _behind(error.__context__)
