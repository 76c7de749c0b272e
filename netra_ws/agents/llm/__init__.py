"""The built-in agent ``llm``: any OpenAI-compatible chat-completions endpoint, streaming, with our declared tools.

From the bottom up: ``sse`` turns bytes into events, ``chunks`` events into one answer of the model; ``listening`` and
``endpoint`` speak HTTP; ``conversation`` keeps what the model is told within a budget; ``agent`` goes round until it
is done.
"""
