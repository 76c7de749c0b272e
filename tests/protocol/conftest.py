"""Settings of the property tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure; what hangs is found by the limit of the whole run.
settings.register_profile("protocol", deadline=None)
settings.load_profile("protocol")
