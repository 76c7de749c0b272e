"""Messages through the codec: a command or an error, and an answer that JSON can say."""

from __future__ import annotations

import random
from collections.abc import Sequence

import orjson

from netra_ws.contexts.memory import digest
from netra_ws.protocol.codec import Incoming, encode_command, encode_reply, error_reply, frame_payload, read_command
from netra_ws.protocol.commands import UserTyping
from netra_ws.protocol.replies import Ack, Error, Pong

from .corpus.messages import SEEDS, WORDS
from .mutation import mutated


def check_message(data: str | bytes) -> Incoming:
    """Read *data* and check what can be made of it.

    Raises:
        Exception: What should not have happened.
    """
    incoming = read_command(data)
    assert (incoming.command is None) != (incoming.error is None)
    if incoming.command is not None:
        digest(incoming.body)
        again = read_command(encode_command(incoming.command))
        assert again.command == incoming.command or isinstance(incoming.command, UserTyping), again
        answer = encode_reply(Ack(), 1.0, incoming)
        original = incoming.command.timestamp
        encode_reply(Pong(original_timestamp=original), 1.0, incoming)
    else:
        assert incoming.error is not None
        reply: Error = error_reply(incoming.error)
        answer = encode_reply(reply, 1.0, incoming)
    if answer is None:
        assert incoming.silent
    else:
        assert len(answer) < 16 * 1024 or incoming.rpc  # a JSON-RPC id comes back whatever it is
        assert type(orjson.loads(frame_payload(answer))) is dict
    return incoming


class Codec:
    """The target ``codec``."""

    name = "codec"

    def make(self, chance: random.Random) -> bytes:
        """Return a message, or what once was one."""
        return mutated(chance, SEEDS, WORDS)

    async def check(self, data: bytes, where: Sequence[int]) -> None:
        """Fail for any exception, for an answer that is no JSON, and where text and bytes are not read the same.

        Raises:
            Exception: What should not have happened.
        """
        of_bytes = check_message(data)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            assert of_bytes.error is not None
            return
        of_text = check_message(text)
        assert of_bytes.command == of_text.command
        assert str(of_bytes.error) == str(of_text.error)
