"""The ways in which a task ends badly that are foreseen, and those that are no fault of a task."""

import re
import select
import sys

# what torch says, as a RuntimeError, where the connection to another process of a team breaks
LOST = re.compile(r"\bgloo/|NCCL|Connection (closed|reset) by peer")


class BadInput(Exception):
    """The user's input cannot be used; the message is one line: what, where, and the mend."""


class Diverged(Exception):
    """A training or its samples became NaN, infinite or absurdly large."""


class OutOfTime(Exception):
    """The time that a run was given is up; what it has begun is kept, and the next run goes on from
    there.
    """


class PeerLost(BaseException):
    """The connection to another process of a team broke, as it does where that ended. No Exception:
    nothing may take it for a failed cell.
    """


class NobodyReads(BaseException):
    """What the command prints goes to a program that has ended, as `head` does after ten lines. No
    Exception: nothing may take it for a failed cell.
    """


def raise_if_stopped(error: Exception) -> None:
    """Raise the Ctrl-C or SIGTERM that led to an error, if one did; NobodyReads and PeerLost for
    what these are.

    What is interrupted in the middle of its work may break on its way out, and Python raises the
    last error. Whoever takes any error for a fault of a task asks this first.
    """
    if stopped := _behind(error):
        raise stopped from None
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        raise NobodyReads from error
    if isinstance(error, RuntimeError) and _in_a_team() and LOST.search(str(error)):
        raise PeerLost(" ".join(str(error).split())[:200]) from error


def _nobody_reads() -> bool:
    """Whether what is printed goes to a pipe at whose other end nobody is."""
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream.fileno(), 0)
        except (AttributeError, ValueError, OSError):  # closed, or no file at all
            continue
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            return True
    return False


def _in_a_team() -> bool:
    """Whether this process is one of several. Where torch has not been imported, it is not."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


def _behind(error: BaseException | None) -> BaseException | None:
    if error is None or not isinstance(error, Exception):
        return error
    return _behind(error.__cause__) or _behind(error.__context__)
