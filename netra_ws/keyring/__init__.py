"""The public keys that tokens are checked with, kept fresh beside everything else."""

from .ring import Keyring as Keyring
from .sources import file_problems as file_problems
from .sources import key_sources as key_sources

__all__ = ["Keyring", "file_problems", "key_sources"]
