"""The door: sockets, heads and frames; the only room that knows h11 and trio-websocket."""
