"""What a stop is answered with: the proof that nothing of the run is left."""

from __future__ import annotations

import trio

from netra_ws.agents.run import Run
from netra_ws.errors import ClientError


async def proof_of_end(run: Run) -> str:
    """Wait until a run that was asked to end has ended and its end is kept; return its final status.

    Bounded: a run is over or sealed within ``finalise_s`` of its cancel (one that stops after its step, by its
    own clocks before that), and its last event has as long again to be committed.

    Raises:
        ClientError: ``CANCEL_TIMEOUT`` when its code could not be stopped. ``UNAVAILABLE`` with
            ``details.stopped`` when nothing of it is left, but the store has not taken its end.
    """
    await run.settled.wait()
    details = {"run_id": run.run_id}
    if run.sealed:
        raise ClientError("CANCEL_TIMEOUT", "the agent did not stop in time", details=details)
    with trio.move_on_after(run.policy.finalise_s) as scope:
        await run.stream.wait_visible(run.last_seq)
    if scope.cancelled_caught:
        text = "the run has been stopped, but the store does not answer: its end is told when it does"
        raise ClientError("UNAVAILABLE", text, retryable=True, details=details | {"stopped": True})
    return run.status
