"""The version of this package; read by the build, told by ``/health``."""

__version__ = "0.1.0"
