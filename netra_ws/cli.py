"""The command line: ``serve``, ``token``, ``chat`` and ``check-config``.

Exit status: 0 after success and a clean drain, 1 when something failed (one clear line on standard
error says what), 2 on bad usage; ``chat`` adds 3 for no connection and 4 for a question of an agent
that nobody can answer here. Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import errno
import gc
import getpass
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import parse_qsl, urlsplit

from netra_ws.errors import ConfigError, InvalidArgument, NetraError
from netra_ws.identity import is_user_id
from netra_ws.settings import ENVIRONMENTS, Loaded, Settings, describe, development_secret, load, problems, warnings
from netra_ws.signals import on_hangup, until_signals

if TYPE_CHECKING:
    from netra_ws.server import Server

logger = logging.getLogger(__name__)

#: Seconds that the login URL of a development start is good for.
LOGIN_S = 12 * 3600.0
#: ``chat`` makes its own tokens in development, a new one for each connection.
CHAT_TOKEN_S = 3600.0
#: Seconds beyond the sum of all bounds of a drain, before the process ends whatever hangs.
SPARE_S = 5.0
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "serve")
    try:
        args = _make_parser(words).parse_args(words)
    except SystemExit as exc:  # argparse has said what is wrong, or has printed the help
        return int(exc.code or 0)
    gc.disable()  # what a command imports and makes at its start is no garbage; who goes on for longer enables it
    try:
        status: int = args.command(args)
    except NetraError as exc:
        _complain(str(exc))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        gc.enable()
    return status


#: Characters of a wrong word that may be repeated: no secret of ours is as short, most slips are.
SHOWN = 12


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with words without repeating values: one may be a secret, and logs keep what is told."""

    words: ClassVar[Sequence[str]] = ()

    def error(self, message: str) -> NoReturn:
        values = {word.partition("=")[2] if word.startswith("-") else word for word in self.words}
        for value in sorted((value for value in values if len(value) > SHOWN), key=len, reverse=True):
            # As argparse repeats it: a word of its own, quoted, or behind the name of its option.
            shown = "|".join(re.escape(text) for text in (repr(value), value))
            message = re.sub(rf"(?<![^\s=])(?:{shown})(?![^\s,)])", "…", message)
        super().error(message)


def _make_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    given = words

    class Parser(_Parser):  # a class, because those of the commands are made of the same
        words = given

    parser = Parser(
        prog="netra-ws",
        description="Run AI agents for many users and stream what they do over WebSockets.",
        epilog="Without a command, the options are those of serve.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"netra-ws {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=run)
        sub.add_argument("--config", type=Path, metavar="F", help="TOML file; else netra_ws.toml, if there is one")
        return sub

    serve = command("serve", _serve_command, "Serve until SIGTERM or Ctrl-C, then let the runs end.")
    serve.add_argument("--host", metavar="H", help="address to listen on")
    serve.add_argument("--port", type=int, metavar="P", help="port to listen on; 0 picks one")
    serve.add_argument("--agent", action="append", metavar="MODULE:NAME", help="an agent of your own; repeatable")
    serve.add_argument(
        "--store",
        metavar="URL",
        help="where threads and events are kept: sqlite:///file.db, memory: or postgresql+psycopg://…",
    )
    _add_environment(serve)
    token = command("token", _token_command, "Print a token signed with auth.secret.")
    token.add_argument("--user", required=True, metavar="U", help="whose token it is")
    token.add_argument(
        "--permission",
        action="append",
        metavar="P",
        help="repeatable; without any: chat and read",
    )
    token.add_argument("--expires", type=_seconds, default=3600.0, metavar="S", help="seconds; default: 3600")
    token.add_argument("--url", action="store_true", help="print an address that signs a browser in")
    _add_environment(token)
    chat = command("chat", _chat_command, "Talk to a server in the terminal.")
    chat.add_argument("text", nargs="?", metavar="TEXT", help="what to say; else standard input, or a prompt")
    chat.add_argument("--url", help="where the server is; default: where serve would listen")
    chat.add_argument("--token", metavar="T", help="who you are; in development one is made for you")
    chat.add_argument("--thread", metavar="ID", help="the conversation to go on with")
    chat.add_argument("--agent", metavar="NAME", help="who shall answer")
    chat.add_argument("--job", metavar="ID", help="watch what is said in a job, and say nothing; Ctrl-C leaves")
    chat.add_argument("--json", action="store_true", help="print one event per line as JSON")
    chat.epilog = (
        "What an agent asks is asked at the terminal; Ctrl-D declines, Ctrl-C stops the run, a second one leaves. "
        "Without a terminal a question ends the run, and the chat with status 4; with --json it is printed, "
        "and the run waits until it is answered over another connection or expires."
    )
    check = command("check-config", _check_command, "Print every setting, its source, and what stops production.")
    _add_environment(check)
    return parser


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--environment", choices=ENVIRONMENTS, help="which profile of settings to use")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 2**40:
        raise argparse.ArgumentTypeError("expected seconds above 0")
    return seconds


def _version() -> str:
    from netra_ws.version import __version__

    return __version__


def _load(args: argparse.Namespace, **more: object) -> Loaded:
    """Merge the settings; options of the command line are the strongest source."""
    given = {
        "environment": getattr(args, "environment", None),
        "server.host": getattr(args, "host", None),
        "server.port": getattr(args, "port", None),
        "store.url": getattr(args, "store", None),
        **more,
    }
    return load(given, args.config, os.environ, Path.cwd())


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"netra-ws: {line}", file=sys.stderr, flush=True)


# serve


def _serve_command(args: argparse.Namespace) -> int:
    settings = _load(args, **{"agents.modules": args.agent}).settings
    if found := problems(settings):
        raise ConfigError("\n".join(found))
    from netra_ws.logs import set_up_logging

    set_up_logging(settings.log, sys.stderr)
    _import_agents(settings)

    import trio

    failure: BaseException | None = None
    clean = False
    try:
        clean = trio.run(_serve, settings)
    except (OSError, BaseExceptionGroup) as exc:
        failure = exc
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
    if isinstance(failure, OSError):
        raise ConfigError(_about_address(settings, failure)) from failure
    if failure is not None:
        raise failure
    return 0 if clean else 1


async def _serve(settings: Settings) -> bool:
    """Serve until the first signal, then drain, and return whether nothing was lost; see ``signals.py``, too."""
    import trio

    from netra_ws.server import longest_end_s, open_server

    asked, soon = trio.Event(), trio.lowlevel.current_trio_token().run_sync_soon
    running: list[Server] = []

    def hang_up() -> None:
        if not running:  # a start reads the files anyway
            return
        if settings.server.tls_cert is None:
            soon(logger.info, "SIGHUP: there are no certificates to read again")
        else:
            soon(running[0].reload_certificates)

    ending = until_signals(lambda: soon(asked.set), longest_end_s(settings) + SPARE_S)
    # A terminal that is closed takes its server along; a service is only told to look at its files again.
    by_hand = any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    service = settings.server.tls_cert is not None or not by_hand
    with ending, on_hangup(hang_up if service else None):
        async with open_server(settings) as server:
            running.append(server)
            # What is there now stays: else the first full collection, a tenth of a second, meets some client.
            gc.freeze()
            gc.enable()
            if not asked.is_set():  # which may happen during the start
                _announce(server)
            await asked.wait()
            await server.drain()
            if server.stuck:
                # A thread that cannot be stopped would keep the interpreter waiting for ever.
                _complain("stuck: a run did not stop; its closing events are written, the process ends")
                _exit_now(1)
    if not server.kept:
        _complain("the store did not take the last events; the next start closes what is open")
    return server.kept


def _exit_now(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _announce(server: Server) -> None:
    settings = server.settings
    for doubt in warnings(settings):
        logger.warning("%s", doubt)
    lines = [f"Listening on {server.url}"]
    if settings.environment == "development" and settings.server.console and not _leaves_secret_out(settings):
        token = _mint(settings, _own_name(), None, LOGIN_S)
        lines.append(f"Open {_base_url(settings, server.port)}/#token={token}")
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _base_url(settings: Settings, port: int) -> str:
    """Return where this machine reaches a server with these settings that listens on *port*."""
    host = _UNSPECIFIED.get(settings.server.host, settings.server.host)
    return f"{'http' if settings.server.tls_cert is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"


def _about_address(settings: Settings, exc: OSError) -> str:
    host, port = settings.server.host, settings.server.port
    if isinstance(exc, socket.gaierror):
        return f"server.host: {host} has no address ({exc.strerror})"
    if exc.errno == errno.EADDRINUSE:
        return f"server.port: {host}:{port} is already in use"
    return f"cannot listen on {host}:{port}: {exc.strerror or exc}"


def _import_agents(settings: Settings) -> None:
    """Import the agents, so that what is wrong with one is told in one line before anything is opened."""
    from netra_ws.agents.agent import load_agent

    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as ``python -m`` has it; the installed script has not
    for spec in settings.agents.modules:
        try:
            load_agent(spec)
        except ConfigError:
            raise
        except Exception as exc:  # somebody's module: it may raise anything
            raise ConfigError(f"agent {spec!r}: {type(exc).__name__}: {exc}".splitlines()[0]) from exc


# token


def _token_command(args: argparse.Namespace) -> int:
    settings = _load(args).settings
    try:
        token = _mint(settings, args.user, args.permission, args.expires)
    except ValueError as exc:
        _complain(f"--user: {exc}")
        return 2
    if args.url and settings.server.port == 0:
        raise ConfigError("server.port: 0 picks a port at the start, so there is no address to print")
    print(f"{_base_url(settings, settings.server.port)}/#token={token}" if args.url else token)
    return 0


def _mint(settings: Settings, user: str, permissions: Sequence[str] | None, expires_s: float) -> str:
    """Sign a token that a server with these settings accepts.

    Raises:
        ConfigError: There is no secret, or it cannot be one, or the server would not look at it.
        ValueError: *user* cannot name a user.
    """
    from netra_ws.access import mint

    auth = settings.auth
    if auth.secret is None and settings.environment != "development":
        raise ConfigError(f"auth.secret: not set, so there is nothing to sign with in {settings.environment}")
    if _leaves_secret_out(settings):
        raise ConfigError("auth.algorithms: HS256 is not among them, so a token signed with auth.secret is refused")
    claims = {name: value for name, value in (("iss", auth.issuer), ("aud", auth.audience)) if value is not None}
    return mint(auth.secret or development_secret(), user, permissions, expires_s, time.time(), **claims)


def _leaves_secret_out(settings: Settings) -> bool:
    return bool(settings.auth.algorithms) and "HS256" not in settings.auth.algorithms


def _own_name() -> str:
    """Return the name of whoever runs this, as ``serve`` and ``chat`` use it in development."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may have no names
        return "alice"
    return name if is_user_id(name) else "alice"


# chat


def _chat_command(args: argparse.Namespace) -> int:
    from netra_ws.chat import ExitStatus, Options, talk
    from netra_ws.client import Address

    settings = _load(args).settings
    url = args.url or _base_url(settings, settings.server.port)
    try:
        Address.parse(url)
    except ValueError as exc:
        _complain(f"--url: {exc}")
        return ExitStatus.USAGE
    given = args.token or dict(parse_qsl(urlsplit(url).fragment)).get("token")  # a login URL carries one
    if given is None and settings.auth.secret is None and settings.environment != "development":
        _complain(f"--token: needed in {settings.environment}")
        return ExitStatus.USAGE
    text = args.text
    if args.job is not None and (wrong := _wrong_watch(args)) is not None:
        _complain(wrong)
        return ExitStatus.USAGE
    try:
        if text is None and args.job is None and not sys.stdin.isatty():
            text = sys.stdin.read()
        if text is not None:
            text.encode()  # depending on the locale, what is not UTF-8 is only found here
    except UnicodeError:
        _complain("the text is not UTF-8")
        return ExitStatus.USAGE
    if text is not None and not text.strip():
        _complain("there is nothing to say: give TEXT, or text on standard input")
        return ExitStatus.USAGE
    own_name = _own_name()
    gc.enable()
    return talk(
        Options(
            url=url,
            token=given or (lambda: _mint(settings, own_name, None, CHAT_TOKEN_S)),
            text=text,
            thread=args.thread,
            agent=args.agent,
            job=args.job,
            as_json=args.json,
        )
    )


def _wrong_watch(args: argparse.Namespace) -> str | None:
    """Return what is wrong with ``--job`` and what came with it."""
    from netra_ws.joined import read_job_id

    if args.text is not None or args.thread is not None or args.agent is not None:
        return "--job only watches: it goes with neither TEXT, --thread nor --agent"
    try:
        read_job_id(args.job, "--job")
    except InvalidArgument as exc:
        return str(exc)
    return None


# check-config


def _check_command(args: argparse.Namespace) -> int:
    loaded = _load(args)
    lines = describe(loaded)
    widths = [
        max(len(cell) for cell in column) for column in zip(*((x.name, x.value_text) for x in lines), strict=True)
    ]
    for line in lines:
        print(f"{line.name:{widths[0]}}  {line.value_text:{min(widths[1], 40)}}  {line.source}")
    # With the profile of production, but with everything that somebody has set.
    production = _load(args, environment="production").settings
    doubts = warnings(production)
    stoppers = [*problems(production), *_wrong_values(production, doubts)]
    print()
    print("A production start would be stopped by:" if stoppers else "Nothing stops a production start.")
    for text in stoppers:
        print(f"  {text}")
    if doubts:
        print("Worth a second look in production:")
        for text in doubts:
            print(f"  {text}")
    settings = loaded.settings
    if settings.environment != "production" and (own := [*problems(settings), *_wrong_values(settings, [])]):
        print(f"This start, in {settings.environment}, would be stopped by:")
        for text in own:
            print(f"  {text}")
    print(f"Not asked: {'auth.jwks_url and ' if settings.auth.jwks_url else ''}store.url.")
    return 1 if stoppers else 0


def _wrong_values(settings: Settings, doubts: list[str]) -> list[str]:
    """Return what only shows when the values are used, one line each; add to *doubts* what is only doubtful.

    No address is asked.
    """
    from netra_ws.access import OriginPolicy, Verifier
    from netra_ws.keyring import file_problems
    from netra_ws.policies import context_policy
    from netra_ws.wire.certificates import Certificates

    def origins() -> None:
        OriginPolicy(settings.origins.allowed, bool(settings.origins.required), settings.environment)

    def secret() -> None:
        if settings.auth.secret is not None:
            Verifier(settings.auth.secret)

    def certificates() -> None:
        server = settings.server
        if server.tls_cert is not None and server.tls_key is not None:
            doubts.extend(Certificates(Path(server.tls_cert), Path(server.tls_key)).doubts())

    def agents() -> None:
        _import_agents(settings)
        context_policy(settings, {})

    found = file_problems(settings)
    for check in (origins, secret, certificates, agents):
        try:
            check()
        except ConfigError as exc:
            found += str(exc).splitlines()
    return found
