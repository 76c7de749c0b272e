"""The protocol in the hands of another library: ``websockets`` on asyncio, nothing of this package.

It asks, loses its connection in the middle of the answer on purpose, comes back with its position,
and gets exactly what it has missed.

    python third_party_client.py ws://127.0.0.1:8000/ws "$(netra-ws token --user alice)" "What is 17% of 2,340?"
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol


def open_socket(url: str, token: str, resume: str = "") -> connect:
    """Prepare a connection; the token may travel as a header or as the subprotocol ``jwt.<token>``."""
    address = f"{url}?resume={resume}" if resume else url
    return connect(
        address, subprotocols=[Subprotocol("netra.v1")], additional_headers={"Authorization": f"Bearer {token}"}
    )


async def receive(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await socket.recv())
    return message


async def main(url: str, token: str, text: str) -> None:
    async with open_socket(url, token) as socket:
        welcome = await receive(socket)  # always the first message
        epoch, seq = welcome["stream"]["epoch"], welcome["stream"]["seq"]
        await socket.send(json.dumps({"type": "start_agent", "id": "c1", "user_request": text}))
        while True:
            message = await receive(socket)
            seq = message.get("seq", seq)  # every stored event has one; answers and notices have none
            print(seq, message["type"])
            if message["type"] == "agent_started":
                socket.transport.abort()  # as when a train enters a tunnel
                break

    async with open_socket(url, token, resume=f"{epoch}:{seq}") as socket:
        print("back again, resumed:", (await receive(socket))["resumed"])
        answer = ""
        while True:
            message = await receive(socket)
            print(message.get("seq", "-"), message["type"])
            if message["type"] == "agent_message":  # a delta is appended, a full text replaces
                answer = answer + message["content"] if message["phase"] == "delta" else message["content"]
            if message["type"] == "agent_completed":
                print(f"{message['status']}: {answer}")
                break


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2], " ".join(sys.argv[3:]) or "What is 17% of 2,340?"))
