"""How long a model is waited for, how often it is asked, and how much it may say."""

from __future__ import annotations

CONNECT_S = 10.0
#: Longest silence of the server, and of its network, while it is listened to.
IDLE_S = 90.0
#: What comes behind the last word is listened to for so long, so that the connection can serve the next step.
REST_S = 0.5
#: Bytes of one request, with all attachments; of one answer; of an answer that says no; of one that is not streamed.
MAX_REQUEST_BYTES = 32 * 2**20
MAX_ANSWER_BYTES = 64 * 2**20
MAX_REFUSAL_BYTES = 64 * 2**10
MAX_WHOLE_BYTES = 8 * 2**20

#: How often one step is asked for before the run fails.
ATTEMPTS = 4
#: Seconds before another attempt: at random below this, twice as much each time, up to the second number.
BACKOFF_S, MAX_BACKOFF_S = 1.0, 8.0
#: A server that asks to wait for longer is not asked again: a person waits for the answer.
MAX_RETRY_AFTER_S = 30.0
#: Behind its last word a server has so many seconds to tell the usage and to end.
LAST_WORDS_S = 5.0
