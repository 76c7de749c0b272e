"""The words on the wire: commands, events, replies, close codes, and the codec between them and text."""
