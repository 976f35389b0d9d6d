"""The system calls that each row may make, and why: data for `packaging/filters.py`, which compiles it with libseccomp.

A row's own filter kills the process at the first call that does not stand here (SECCOMP_RET_KILL_PROCESS): our code does not
make such a call, so whoever makes it is not our code.  Answered with an error instead are look-ups of paths that the
interpreter makes by itself (EACCES), and `clone3`, whose flags a filter cannot see (ENOSYS; the C library then uses `clone`).

Rows that start programs cannot have such a filter, because programs inherit it: theirs, and the supervisor's, is a list of
what is refused (EPERM) and kills nobody.  Rows whose programs are the administrator's or the host's own (hook, exec) have none;
`privsep/domains.py` says so.

Facts: seccomp(2), syscalls(2); numbers of ioctls from the kernel's uapi headers; which calls the interpreter and glibc make was
seen with strace on Python 3.11 and glibc 2.36.  Names that a machine does not have are passed over there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# What becomes of a call.
ALLOW: Final = 0
KILL: Final = -1
EPERM: Final = 1
EACCES: Final = 13
EINVAL: Final = 22
ENOTTY: Final = 25
ENOSYS: Final = 38

_INT: Final = 0xFFFFFFFF  # the bits that the kernel looks at where the parameter is an int


class Test:
    """Argument `number` (0 to 5), masked, compared with `value`.  `same` False: it must differ; without a mask then."""

    __slots__ = ("number", "value", "mask", "same")

    def __init__(self, number: int, value: int, mask: int = _INT, *, same: bool = True) -> None:
        self.number = number
        self.value = value
        self.mask = mask
        self.same = same


class Call:
    """System calls (names with blanks between) that get the same answer for the same reason, if all `tests` hold."""

    __slots__ = ("names", "why", "tests", "answer")

    def __init__(self, names: str, why: str, *tests: Test, answer: int = ALLOW) -> None:
        self.names = tuple(names.split())
        self.why = why
        self.tests = tests
        self.answer = answer


class Filter:
    """`otherwise`: what becomes of a call that no rule fits."""

    __slots__ = ("calls", "otherwise")

    def __init__(self, *groups: tuple[Call, ...], otherwise: int = KILL) -> None:
        self.calls = tuple(call for group in groups for call in group)
        self.otherwise = otherwise


# -- values of arguments

_PROT_EXEC: Final = 0x4
_AT_EMPTY_PATH: Final = 0x1000
_O_ACCMODE: Final = 0o3
_O_CREAT: Final = 0o100
_O_TRUNC: Final = 0o1000
_AF_UNIX: Final = 1
_SOL_SOCKET: Final = 1
_SO_SNDBUF: Final = 7
_FIONBIO: Final = 0x5421
_TCGETS: Final = 0x5401
_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878
_FITRIM: Final = 0xC0185879
_RTC_RD_TIME: Final = 0x80247009
_RTC_SET_TIME: Final = 0x4024700A
_F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL = 1, 2, 3, 4
_F_DUPFD_CLOEXEC: Final = 1030
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_CLOCK_REALTIME: Final = 0

# CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID: what pthread_create asks for; the
# flag that is masked out (CLONE_DETACHED) means nothing and is musl's.
_THREAD: Final = 0x3D0F00
_THREAD_MASK: Final = _INT & ~0x400000
# CHILD_SETTID, CHILD_CLEARTID, SIGCHLD: fork.
_FORK: Final = 0x1200011
_NAMESPACES: Final = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_CLONE_NEWNET: Final = 0x40000000


# -- groups

_RUN: Final = (
    Call("brk munmap mremap", "memory of the interpreter and malloc"),
    Call("mmap mprotect", "memory, never executable", Test(2, 0, _PROT_EXEC)),
    Call(
        "madvise",
        "malloc and ended threads give pages back, but nobody makes holes (9) in what others map",
        Test(2, 9, same=False),
    ),
    Call("restart_syscall", "a wait goes on after the process was stopped"),
    Call("exit_group", "the end"),
    Call("clock_gettime gettimeofday time", "where the clock source is one that the vDSO cannot read"),
    Call("poll ppoll", "the loop waits"),
    Call("futex", "the interpreter's locks"),
    Call("read write close", "descriptors that it has"),
    Call("prctl", "newer interpreters give their memory names (PR_SET_VMA)", Test(0, 0x53564D41), answer=EINVAL),
    Call("pread64", "reads its own status back, and the journal"),
)

_TALK: Final = (
    Call("recvmsg recvfrom sendto", "messages with the other processes"),
    Call("getsockname", "a socket object is made of a descriptor"),
    Call("getsockopt", "a socket object is made of a descriptor: type and protocol", Test(1, _SOL_SOCKET)),
)

_AWAKE: Final = (Call("sched_yield", "lets others run while it looks for the next message"),)

_NON_BLOCKING: Final = (Call("ioctl", "a descriptor is made (non-)blocking", Test(1, _FIONBIO)),)

_FSTAT: Final = (
    Call("fstat", "what a descriptor is"),
    Call("newfstatat", "the same, as glibc asks it", Test(3, _AT_EMPTY_PATH)),
)

_PATHS_REFUSED: Final = (
    Call("open openat", "imports and tracebacks look for files", answer=EACCES),
    Call("stat lstat statx readlink readlinkat access faccessat faccessat2", "the same", answer=EACCES),
)

_STAT_REFUSED: Final = (
    Call("newfstatat", "imports and tracebacks look for files", Test(3, _AT_EMPTY_PATH, same=False), answer=EACCES),
)

_READ_PATHS: Final = (
    Call("open", "opens for reading, as far as Landlock lets it", Test(1, 0, _O_ACCMODE | _O_CREAT | _O_TRUNC)),
    Call("openat", "opens for reading, as far as Landlock lets it", Test(2, 0, _O_ACCMODE | _O_CREAT | _O_TRUNC)),
    Call("stat lstat statx newfstatat fstat readlink readlinkat access faccessat faccessat2", "looks at paths"),
    Call("lseek", "reads a file from its start again"),
)

_LIST: Final = (Call("getdents64", "lists folders"),)

_LIST_OPEN: Final = (
    Call("fcntl", "a listing of an open folder duplicates its descriptor", Test(1, _F_DUPFD_CLOEXEC)),
    Call("fcntl", "a listing of an open folder looks at its flags", Test(1, _F_GETFL)),
    Call("fcntl", "a listing of an open folder sets close-on-exec", Test(1, _F_SETFD)),
)

_THREADS: Final = (
    Call("clone", "starts a thread, nothing else", Test(0, _THREAD, _THREAD_MASK)),
    Call("clone3", "its flags are out of a filter's sight; clone is used instead", answer=ENOSYS),
    Call("set_robust_list rseq gettid sched_getaffinity", "a thread begins"),
    Call("rt_sigprocmask rt_sigaction", "a thread begins and ends with signals blocked"),
    Call("exit", "a thread ends"),
)

_FORK_SAME: Final = (
    Call("clone", "a child that acts as the user, by fork and without exec", Test(0, _FORK)),
    Call("fork", "the same, on other C libraries"),
    Call("clone3", "its flags are out of a filter's sight; clone is used instead", answer=ENOSYS),
    Call("set_robust_list rseq gettid getpid rt_sigprocmask rt_sigaction", "a child begins"),
    Call("close_range", "a child closes what it does not need"),
    Call("pipe2 pipe", "a child answers through a pipe"),
    Call("wait4 waitid pidfd_open", "a child's end"),
    Call("umask", "files of the user are the user's"),
)

# -- what is refused to programs and, less what a row needs, to the supervisor

_MODULES: Final = (
    Call("init_module finit_module delete_module", "no code for the kernel", answer=EPERM),
    Call("bpf kexec_load kexec_file_load", "no code for the kernel", answer=EPERM),
    Call("perf_event_open userfaultfd", "not needed, and often the way to a hole in the kernel", answer=EPERM),
    Call("io_uring_setup io_uring_enter io_uring_register", "goes past a filter", answer=EPERM),
    Call("add_key request_key keyctl", "no keys", answer=EPERM),
)

_OTHERS: Final = (
    Call("ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd", "no other process is looked into", answer=EPERM),
    Call("open_by_handle_at", "goes past paths", answer=EPERM),
)

_MOUNTS: Final = (
    Call("mount umount2 pivot_root chroot", "paths stay what they are", answer=EPERM),
    Call("move_mount fsopen fsconfig fsmount fspick open_tree mount_setattr", "paths stay what they are", answer=EPERM),
    Call("swapon swapoff acct quotactl quotactl_fd", "not the agent's", answer=EPERM),
    Call("reboot", "shutting down is the init system's", answer=EPERM),
    Call("setns", "stays in its namespaces", answer=EPERM),
)

_NO_NAMESPACES: Final = (
    Call("unshare", "stays in its namespaces", answer=EPERM),
    Call("clone3", "its flags are out of a filter's sight; clone is used instead", answer=ENOSYS),
    *(Call("clone", "no new namespace", Test(0, flag, flag), answer=EPERM) for flag in _NAMESPACES),
)

_CLOCK: Final = (
    Call("settimeofday clock_settime adjtimex", "the clock is the time worker's", answer=EPERM),
    Call("iopl ioperm", "no ports", answer=EPERM),
)

# AF_UNIX and AF_NETLINK (audit) are left; a library that finds no other family goes on without.
_LOCAL_SOCKETS: Final = (
    *(Call("socket", "no network", Test(0, family), answer=EPERM) for family in (2, 10, 17, 40, 44)),
)

_NO_TYPING: Final = (
    Call("ioctl", "no keystrokes for a terminal", Test(1, 0x5412), answer=EPERM),  # TIOCSTI
    Call("ioctl", "no keystrokes for a terminal", Test(1, 0x541C), answer=EPERM),  # TIOCLINUX
)

_PROGRAMS: Final = Filter(
    _MODULES, _OTHERS, _MOUNTS, _NO_NAMESPACES, _CLOCK, _LOCAL_SOCKETS, _NO_TYPING, otherwise=ALLOW
)


FILTERS: Final = {
    # In force only where no enabled row is without walls: what it starts inherits it.
    "supervisor": Filter(
        _MODULES,
        _OTHERS,
        _MOUNTS,
        (
            Call(
                "unshare",
                "a front makes its empty network namespace, and nothing else",
                Test(0, _CLONE_NEWNET, same=False),
                answer=EPERM,
            ),
            *(c for c in _NO_NAMESPACES if "unshare" not in c.names),
        ),
        otherwise=ALLOW,
    ),
    "front": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _NON_BLOCKING,
        _PATHS_REFUSED,
        (
            Call("newfstatat", "imports and tracebacks look for files", answer=EACCES),
            Call("accept4", "the host's connection on the listening socket that it was given"),
            Call("writev", "the parts of a large reply go to the host"),
            Call(
                "setsockopt",
                "more of a reply fits into the connection",
                Test(1, _SOL_SOCKET),
                Test(2, _SO_SNDBUF),
            ),
            Call(
                "epoll_ctl epoll_wait epoll_pwait",
                "waits for the host to open the port, where poll would tell of a hang-up each time",
            ),
            Call("fcntl", "takes bulk data in memory only", Test(1, _F_GET_SEALS)),
            Call("lseek", "takes bulk data of the announced size only"),
            Call("fcntl", "a mapping keeps a descriptor of its own", Test(1, _F_DUPFD_CLOEXEC)),
            Call("uname", "guest-get-host-name"),
            Call("clock_nanosleep", "at its end, while the host takes the last replies"),
        ),
    ),
    "thawer": Filter(
        _RUN,
        _TALK,
        _NON_BLOCKING,
        _FSTAT,
        _STAT_REFUSED,
        _PATHS_REFUSED,
        _THREADS,
        (
            Call("ioctl", "thaws", Test(1, _FITHAW)),
            Call("fcntl", "refuses descriptors that were opened by O_PATH", Test(1, _F_GETFL)),
            Call("pwrite64", "puts rcu_expedited back, through a descriptor from before its walls"),
            Call("mlockall", "its memory must not be paged in from a frozen file system"),
        ),
    ),
    "fs": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _READ_PATHS,
        _LIST,
        _THREADS,
        (
            Call("sendmsg", "descriptors of what is about to be frozen go to the thawer"),
            Call("ftruncate", "the journal begins anew with each freeze"),
            Call("syncfs", "before the freeze"),
            Call("ioctl", "freezes", Test(1, _FIFREEZE)),
            Call("ioctl", "thaws when the thawer is dead", Test(1, _FITHAW)),
            Call("pwrite64", "raises rcu_expedited for a freeze, through a descriptor from before its walls"),
            Call("mlockall", "its memory must not be paged in from a frozen file system"),
            Call("clock_nanosleep", "waits for a thaw that goes on"),
        ),
    ),
    "trim": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _READ_PATHS,
        _THREADS,
        (Call("ioctl", "trims", Test(1, _FITRIM)),),
    ),
    "network": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _PATHS_REFUSED,
        (
            Call("newfstatat", "imports and tracebacks look for files", answer=EACCES),
            Call("lseek", "reads the routes from their start again"),
        ),
    ),
    "inventory": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _READ_PATHS,
        _LIST,
        _LIST_OPEN,
        _THREADS,
        (
            Call("statfs", "how full a file system is"),
            Call("uname", "the kernel's name"),
            Call(
                "ioctl",
                "where a traceback reads the library's source: is it a terminal?",
                Test(1, _TCGETS),
                answer=ENOTTY,
            ),
        ),
    ),
    "power": _PROGRAMS,
    "time": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _READ_PATHS,
        (
            Call("clock_settime", "sets the clock", Test(0, _CLOCK_REALTIME)),
            Call("ioctl", "reads the hardware clock", Test(1, _RTC_RD_TIME)),
            Call("ioctl", "sets the hardware clock", Test(1, _RTC_SET_TIME)),
            Call("clock_nanosleep", "waits for the hardware clock's tick"),
        ),
    ),
    "hotplug": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _LIST_OPEN,
        (
            Call("open", "opens, makes nothing", Test(1, 0, _O_CREAT | _O_TRUNC)),
            Call("openat", "opens, makes nothing", Test(2, 0, _O_CREAT | _O_TRUNC)),
            Call("stat lstat statx newfstatat fstat readlink readlinkat access faccessat faccessat2", "looks at paths"),
            Call("getdents64", "lists folders"),
            Call("lseek", "a listing of an open folder starts at its beginning"),
            Call("pwrite64", "a processor's `online`, a memory block's `state`"),
        ),
    ),
    "user": _PROGRAMS,
    # The account database may be any module that the administrator configured, hence an error where others are killed.
    "ssh": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        _FORK_SAME,
        (
            Call("open openat", "the target user's files; what may be opened is the user's right and Landlock's"),
            Call("stat lstat statx newfstatat fstat readlink readlinkat access faccessat faccessat2", "looks at paths"),
            Call("lseek getdents64", "reads the account database"),
            Call("mkdir mkdirat", "a user without `.ssh`"),
            Call("rename renameat renameat2 unlink unlinkat", "a new file takes the old one's place"),
            Call("fchmod ftruncate fsync pwrite64", "its mode, its length, its safety"),
            Call("getrandom", "the name of the new file"),
            Call("setgroups setresgid setresuid capset", "becomes the user"),
            Call(
                "getuid geteuid getgid getegid getresuid getresgid getgroups capget", "sees that it has become the user"
            ),
            Call("alarm setitimer", "a child ends itself in time"),
            Call("kill", "a child that is late is ended by one that is the same user"),
            Call("socket", "the account database may be a service's (nscd, sssd, systemd-userdbd)", Test(0, _AF_UNIX)),
            Call("connect sendmsg sendmmsg", "the same"),
            Call("fcntl", "the same, and descriptors' flags", Test(1, _F_GETFL)),
            Call("fcntl", "the same", Test(1, _F_SETFL)),
            Call("fcntl", "the same", Test(1, _F_GETFD)),
            Call("fcntl", "the same", Test(1, _F_SETFD)),
            Call("fcntl", "the same", Test(1, _F_DUPFD_CLOEXEC)),
        ),
        otherwise=EPERM,
    ),
    "file": Filter(
        _RUN,
        _TALK,
        _AWAKE,
        (
            Call("open openat", "any path that policy admits; what may be opened is Landlock's and the capabilities'"),
            Call("fstat", "what a descriptor is"),
            Call(
                "lstat newfstatat",
                "the same, as glibc asks it; whether a file that it made, or that a rule is for, is still the one of that name",
            ),
            Call("readlink readlinkat", "where a file that it opened really is, for the policy's rules"),
            Call("ftruncate", "under the policy's rules a file is looked at before it is cut off"),
            Call("unlink unlinkat", "a file that it made and could not give its mode"),
            Call("fchmod", "the mode of a file that it made"),
            Call("lseek", "guest-file-seek"),
            Call("renameat renameat2 rename", "the counter of handles is replaced at once"),
            Call("readv", "bulk data goes to the front in memory that is kept"),
            Call("sendmsg", "the descriptor of that memory goes to the front"),
        ),
    ),
}
