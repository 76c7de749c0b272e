"""Every setting, its rule, and where its value came from.

Sources, weakest first: defaults < profile of the environment < TOML table ``[netra_ws]`` <
``NETRA_WS_<SECTION>_<NAME>`` < command line. Only ``server`` and ``cli`` know this room; every
other one is handed values. Times are seconds and sizes bytes where a name says so.
"""

from .checks import Line as Line
from .checks import describe as describe
from .checks import problems as problems
from .checks import warnings as warnings
from .loading import Loaded as Loaded
from .loading import load as load
from .model import has_model as has_model
from .rules import ENVIRONMENTS as ENVIRONMENTS
from .rules import MIN_SECRET_BYTES as MIN_SECRET_BYTES
from .rules import mask_address as mask_address
from .rules import mask_url as mask_url
from .secret import development_secret as development_secret
from .sections import LEAVES as LEAVES
from .sections import Agents as Agents
from .sections import Auth as Auth
from .sections import Backplane as Backplane
from .sections import History as History
from .sections import Limits as Limits
from .sections import Llm as Llm
from .sections import Log as Log
from .sections import Origins as Origins
from .sections import Price as Price
from .sections import Server as Server
from .sections import Settings as Settings
from .sections import Store as Store
from .sections import Timing as Timing
