"""The lock: who may come in, and how often. Pure decisions over values, with the clock handed in."""

from .admission import Admission as Admission
from .admission import Head as Head
from .admission import Statistics as Statistics
from .keys import PublicKeys as PublicKeys
from .limits import AddressTable as AddressTable
from .limits import Budgets as Budgets
from .limits import RateLimit as RateLimit
from .limits import ping_budget as ping_budget
from .origins import OriginFault as OriginFault
from .origins import OriginPolicy as OriginPolicy
from .proxies import LOOPBACK as LOOPBACK
from .proxies import Proxies as Proxies
from .revocations import Revocation as Revocation
from .revocations import Revocations as Revocations
from .revocations import issued_at as issued_at
from .strikes import Strikes as Strikes
from .tickets import Issued as Issued
from .tickets import Tickets as Tickets
from .tokens import Verifier as Verifier
from .tokens import choose_subprotocol as choose_subprotocol
from .tokens import find_token as find_token
from .tokens import is_older_client as is_older_client
from .tokens import mint as mint
from .tokens import offered_subprotocols as offered_subprotocols

__all__ = [
    "LOOPBACK",
    "AddressTable",
    "Admission",
    "Budgets",
    "Head",
    "Issued",
    "OriginFault",
    "OriginPolicy",
    "Proxies",
    "PublicKeys",
    "RateLimit",
    "Revocation",
    "Revocations",
    "Statistics",
    "Strikes",
    "Tickets",
    "Verifier",
    "choose_subprotocol",
    "find_token",
    "is_older_client",
    "issued_at",
    "mint",
    "offered_subprotocols",
    "ping_budget",
]
