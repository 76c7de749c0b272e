"""The terminal chat: says a text, shows what the agent does as it comes, tells by its exit status how it ended."""

from .screen import Screen as Screen
from .screen import plain as plain
from .visit import ExitStatus as ExitStatus
from .visit import Options as Options
from .visit import talk as talk
