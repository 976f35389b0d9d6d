"""Every child's way from exec to its first request: the same for all, in this order.

Ignore the terminal's and the service manager's signals (a child obeys the end of file on its control socket); read the
sealed policy slice; import everything that will ever be needed; open what the row could not open later; become what
the row says; say so to the supervisor, which compares before it hands over a socket.
"""

from __future__ import annotations

import _signal
import gc
import os
import sys

from policy.seal import is_sealed, parse_slice, read_sealed
from privsep import wiring
from privsep.audit import Audit
from privsep.board import Board
from privsep.counters import Page
from privsep.domains import BY_NAME
from privsep.log import Log
from privsep.sandbox import kernel
from privsep.sandbox.apply import NotAsDeclared, apply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

    from privsep.runtime import Context

# Exit statuses that the supervisor's log can be read by.
EXIT_BROKEN: Final = 70  # EX_SOFTWARE
EXIT_WALLS: Final = 71  # the row's walls could not be put up


def main(name: str, filters: str, root: str = "") -> NoReturn:
    """Be the child of that row.  `filters`: the folder of compiled filters; `root` is for tests' own entry scripts."""
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)
    status = EXIT_BROKEN
    try:
        status = _live(name, filters, root)
    except BaseException as e:  # the last stop: the type and place are told, never the values
        place = e.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno}" if place else "?"
        text = f": {e}" if isinstance(e, (NotAsDeclared, ImportError, OSError)) else ""
        _say(f"{name}: ended by {type(e).__name__} at {where}{text}")
    os._exit(status)


# The board, once there is one: behind the walls it could not be attached again.
_boards: list[Board] = []


def _say(text: str) -> None:
    if any(board.frozen for board in _boards):
        return  # a write to a frozen disk would never end
    try:
        os.write(2, text.encode("utf-8", "replace") + b"\n")
    except OSError:
        pass


def _live(name: str, filters: str, root: str) -> int:
    row = BY_NAME[name]
    control = wiring.adopt(wiring.CONTROL_FD)
    for fd in (wiring.CONTROL_FD, wiring.SLICE_FD, wiring.BOARD_FD, wiring.AUDIT_FD, wiring.COUNTERS_FD):
        os.set_inheritable(fd, False)
    board = Board.attach(wiring.BOARD_FD)
    counters = Page.attach(wiring.COUNTERS_FD)
    os.close(wiring.COUNTERS_FD)
    audit = Audit(wiring.AUDIT_FD, counters.numbers)
    _boards.append(board)
    if name == "front":
        from privsep import front as front_module  # while the supervisor finds out what the slice will say
        from protocol import plain

        plain.stand_alone()

        if not is_sealed(wiring.SLICE_FD) and control.recv(1) != wiring.GO:
            return EXIT_BROKEN
    told = read_sealed(wiring.SLICE_FD)
    allowed, settings = parse_slice(told)
    os.close(wiring.SLICE_FD)
    log = Log(2, name, verbose=settings.get("verbose") == "1", hold=lambda: board.frozen)

    context: Context | None = None
    if name == "front":
        front = front_module.Front(
            control,
            allowed=allowed,
            settings=settings,
            board=board,
            log=log,
            audit=audit,
            counters=counters,
            give_back=kernel.give_back,
        )
        run = front.run
    elif name == "thawer":
        from privsep import thawer

        run = thawer.prepare(control, settings=settings, board=board, log=log, audit=audit)
    else:
        from privsep.runtime import Context, Worker

        module = __import__(f"workers.{name}", fromlist=["workers"])
        context = Context(
            log=log, settings=settings, root=root, control=control, board=board, audit=audit, counters=counters
        )
        if b"\nrule " in told or b"\nwhy " in told:
            from policy.rules import scope_of  # most policies have no rules

            context.scope = scope_of(told)
            if context.scope is not None and context.scope.rules:
                from policy.decide import Ruling

                context.ruling = Ruling(context.scope)
        prepare = getattr(module, "prepare", None)
        if prepare is not None:
            prepare(context)
        run = Worker(name, module, context, allowed).run

    gc.freeze()
    gc.enable()  # the entry script turned it off
    kernel.give_back()  # what the imports have left
    try:
        walls = apply(
            row,
            uid=int(settings.get("uid", "0")),
            gid=int(settings.get("gid", "0")),
            privileged=settings.get("privileged") == "1",
            filters=filters,
            root=root,
            environ=os.environ,
            settings=settings,
            granted=context.granted if context is not None else None,
        )
    except (NotAsDeclared, OSError) as e:
        _say(f"{name}: the walls of its row cannot be put up: {e}")
        return EXIT_WALLS
    sys.stdin = sys.stdout = sys.stderr = None
    for missing in walls.missing:
        log.warning(f"degraded: {missing}")
    control.send(wiring.READY + bytes((walls.level,)))
    run()
    log.flush()
    return 0
