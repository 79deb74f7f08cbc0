"""The system calls that a container may make when nobody says otherwise.

Three answers. What ordinary programs need is allowed. What reaches beyond the container, or is known for holes in the
kernel, is refused with EPERM unless a capability of the container is made for it. Everything else, also what is newer
than this list, is answered with ENOSYS as by a kernel that does not have it: programs then take the older way, where
EPERM would make them give up.

The lists are by purpose, as the manual pages group the calls; names that exist on other architectures only are
harmless, as they are looked up where the filter is made. Docker's profile is the measure of what a program may expect
(https://docs.docker.com/engine/security/seccomp/).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

_FILES = """
access faccessat faccessat2 chdir fchdir chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown
lchown32 close close_range copy_file_range creat dup dup2 dup3 fadvise64 fadvise64_64 arm_fadvise64_64 fallocate fcntl
fcntl64 fdatasync flock fstat fstat64 fstatat64 newfstatat fstatfs fstatfs64 statfs statfs64 ustat fsync ftruncate
ftruncate64 truncate truncate64 futimesat utime utimes utimensat utimensat_time64 getcwd getdents getdents64 ioctl
lgetxattr getxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr
fremovexattr getxattrat setxattrat listxattrat removexattrat link linkat symlink symlinkat _llseek lseek stat stat64
statx lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at open openat openat2 oldfstat oldlstat oldstat
pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv write writev rename renameat
renameat2 rmdir sendfile sendfile64 splice sync sync_file_range sync_file_range2 arm_sync_file_range syncfs tee umask
unlink unlinkat vmsplice cachestat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch fanotify_mark
"""
_WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old poll ppoll
ppoll_time64 pselect6 pselect6_time64 select _newselect eventfd eventfd2 signalfd signalfd4 pipe pipe2 io_cancel
io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
"""
_MEMORY = """
brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages process_mrelease
cacheflush arm_sync_file_range
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork vfork get_thread_area set_thread_area set_tls get_tls
get_robust_list set_robust_list set_tid_address getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
getgroups32 getpgid getpgrp getpid getppid getresgid getresgid32 getresuid getresuid32 getrlimit ugetrlimit getrusage
getsid gettid getuid getuid32 getpriority setpriority ioprio_get ioprio_set kill tkill tgkill landlock_add_rule
landlock_create_ruleset landlock_restrict_self modify_ldt nice pause pidfd_open pidfd_send_signal prctl prlimit64
process_vm_readv process_vm_writev ptrace restart_syscall rseq sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsgid32 setfsuid
setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sysinfo uname wait4 waitid waitpid breakpoint
riscv_flush_icache riscv_hwprobe
"""
_SIGNALS_AND_TIME = """
alarm adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 getitimer setitimer gettimeofday nanosleep time times timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal
sigpending sigprocmask sigreturn sigsuspend futex futex_time64 futex_wait futex_waitv futex_wake futex_requeue
"""
_TALKING = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair ipc mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl
semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget getrandom
"""

_REFUSED = """
acct add_key bpf clock_settime clock_settime64 create_module delete_module fanotify_init finit_module fsconfig fsmount
fsopen fspick get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages
nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise quotactl quotactl_fd
reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday stime swapoff
swapon syslog umount umount2 uselib userfaultfd vhangup vm86 vm86old chroot
"""

#: What a capability opens; the kernel still checks the capability itself.
_BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": """
        bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree
        perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns swapoff swapon syslog umount
        umount2 unshare clone clone3
    """,
    "CAP_SYS_BOOT": "reboot kexec_load kexec_file_load",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}

# include/uapi/linux/sched.h: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_ANY_NAMESPACE = sum(_NEW_NAMESPACES)
#: Domains of personality(2) that change nothing of safety: Linux, Linux32, either with UNAME26, and asking.
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
_AF_VSOCK = 40  # leads to the hypervisor, past every network namespace


def default_profile() -> dict[str, Any]:
    """The default profile, in the form that :func:`orch_runtime.config.seccomp_profile.resolve_profile` reads."""
    rules: list[dict[str, Any]] = [
        _allow(f"{_FILES} {_WAITING} {_MEMORY} {_PROCESSES} {_SIGNALS_AND_TIME} {_TALKING}".split()),
        *(_allow(["personality"], _argument("SCMP_CMP_EQ", domain)) for domain in _PERSONALITIES),
        _allow(["socket"], _argument("SCMP_CMP_NE", _AF_VSOCK)),
        _refuse(["socket"], _argument("SCMP_CMP_EQ", _AF_VSOCK), code=errno.EAFNOSUPPORT),
    ]
    without_admin = {"caps": ["CAP_SYS_ADMIN"]}
    for call in ("clone", "unshare"):
        rules.append(
            {
                **_allow([call], _argument("SCMP_CMP_MASKED_EQ", _ANY_NAMESPACE)),
                "excludes": without_admin,
            }
        )
        rules += [
            {**_refuse([call], _argument("SCMP_CMP_MASKED_EQ", flag, flag)), "excludes": without_admin}
            for flag in _NEW_NAMESPACES
        ]
    opened_by: dict[str, list[str]] = {}
    for capability, calls in _BY_CAPABILITY.items():
        rules.append({**_allow(calls.split()), "includes": {"caps": [capability]}})
        for call in calls.split():
            opened_by.setdefault(call, []).append(capability)
    rules += [
        {**_refuse([call]), "excludes": {"caps": opened_by.get(call, [])}} for call in _REFUSED.split()
    ]  # fmt: skip
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.ENOSYS, "syscalls": rules}


def _allow(names: Sequence[str], *arguments: dict[str, Any]) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", "args": list(arguments)}


def _refuse(names: Sequence[str], *arguments: dict[str, Any], code: int = errno.EPERM) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": code, "args": list(arguments)}


def _argument(operator: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": 0, "op": operator, "value": value, "valueTwo": second}
