"""The ways in which a task ends badly that are foreseen."""


class BadInput(Exception):
    """The user's input cannot be used; the message is one line: what, where, and the mend."""


class Diverged(Exception):
    """A training or its samples became NaN, infinite or absurdly large."""


class OutOfTime(Exception):
    """The time that a run was given is up; what it has begun is kept, and the next run goes on from
    there.
    """
