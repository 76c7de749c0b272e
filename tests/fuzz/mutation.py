"""Small random changes of bytes, and random places to cut them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

#: No input grows beyond this.
MOST_BYTES = 256 * 1024


def mutated(chance: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return one of *seeds* after up to eight changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 5, 8))):
        _change(chance, data, seeds, words)
    return bytes(data[:MOST_BYTES])


def _change(chance: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    upto = min(len(data), at + chance.choice((1, 2, 4, 16, 100)))
    match chance.randrange(8):
        case 0:  # another byte
            data[at : at + 1] = bytes([chance.randrange(256)])
        case 1:  # one bit
            if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
        case 2:  # less
            del data[at:upto]
        case 3:  # the same again, now and then many times
            data[at:at] = data[at:upto] * chance.choice((1, 1, 2, 30))
        case 4:  # a word
            data[at:at] = chance.choice(words) if words else chance.randbytes(4)
        case 5:  # another seed
            data[at:at] = chance.choice(seeds)[:4096]
        case 6:  # garbage
            data[at:upto] = chance.randbytes(chance.choice((1, 2, 8, 40)))
        case _:  # cut off
            del data[at:]


def cuts(chance: random.Random, size: int, most: int = 6) -> tuple[int, ...]:
    """Return the places at which *size* bytes are cut, in order; now and then after each byte."""
    if size < 400 and chance.random() < 0.05:
        return tuple(range(1, size))
    return tuple(sorted(chance.randrange(size + 1) for _ in range(chance.randrange(most + 1))))


def pieces(data: bytes, where: Sequence[int]) -> list[bytes]:
    """Return *data* cut at those places, without empty pieces."""
    edges = [0, *where, len(data)]
    return [piece for begin, end in itertools.pairwise(edges) if (piece := data[begin:end])]
