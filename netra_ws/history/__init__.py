"""Memory: the streams of events, the recorder that commits them, the ledger, and the stores beneath."""
