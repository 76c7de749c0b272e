"""Where streams and the ledger are kept: the contract, and its drivers ``memory`` and ``sql``.

Only ``history.opening`` picks a driver; everybody else knows ``contract``.
"""
