/* Starts one container as orch does, with the same system calls, and nothing else: what the kernel alone takes.
 *
 * Says on standard error when it began (microseconds of the monotonic clock), as loading it is no part of a start.
 *
 * usage: container_floor ROOTFS GROUP CONTROLLER...      (GROUP: a group's name below each /sys/fs/cgroup/CONTROLLER)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void check(int result, const char *what) {
    if (result < 0) {
        perror(what);
        _exit(125);
    }
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    check(fd, path);
    check(write(fd, text, strlen(text)), path);
    close(fd);
}

static void mask(const char *path) {
    struct stat found;
    if (stat(path, &found) < 0)
        return;
    if (S_ISDIR(found.st_mode))
        check(mount("tmpfs", path, "tmpfs", MS_RDONLY, "size=0"), path);
    else
        check(mount("/dev/null", path, NULL, MS_BIND, NULL), path);
}

static void read_only(const char *path) {
    struct stat found;
    if (stat(path, &found) < 0)
        return;
    check(mount(path, path, NULL, MS_BIND | MS_REC, NULL), path);
    check(mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), path);
}

static void node(const char *path, int major_number, int minor_number) {
    check(mknod(path, S_IFCHR | 0666, makedev(major_number, minor_number)), path);
    check(chmod(path, 0666), path);
}

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    check(ioctl(fd, SIOCGIFFLAGS, &request), "flags of lo");
    request.ifr_flags |= IFF_UP;
    check(ioctl(fd, SIOCSIFFLAGS, &request), "lo up");
    close(fd);
}

static void file_systems(const char *root, int controllers, char **controller) {
    unsigned long safe = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    char path[512];
    check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    check(mount(root, root, NULL, MS_BIND | MS_REC, NULL), "rootfs");
    check(chdir(root), root);
    check(mount("proc", "proc", "proc", safe, NULL), "proc");
    check(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "dev");
    mkdir("dev/pts", 0755), mkdir("dev/shm", 0755), mkdir("dev/mqueue", 0755);
    check(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"), "pts");
    check(mount("shm", "dev/shm", "tmpfs", safe, "mode=1777,size=65536k"), "shm");
    check(mount("mqueue", "dev/mqueue", "mqueue", safe, NULL), "mqueue");
    check(mount("sysfs", "sys", "sysfs", safe | MS_RDONLY, NULL), "sys");
    check(mount("tmpfs", "sys/fs/cgroup", "tmpfs", safe, "mode=755"), "cgroup");
    for (int number = 0; number < controllers; number++) {
        snprintf(path, sizeof path, "sys/fs/cgroup/%s", controller[number]);
        mkdir(path, 0755);
        check(mount("cgroup", path, "cgroup", safe | MS_RDONLY, controller[number]), path);
    }
    node("dev/null", 1, 3), node("dev/zero", 1, 5), node("dev/full", 1, 7);
    node("dev/random", 1, 8), node("dev/urandom", 1, 9), node("dev/tty", 5, 0);
    check(symlink("pts/ptmx", "dev/ptmx"), "ptmx");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "old root");
    check(chdir("/"), "/");
    const char *masked[] = {"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"};
    const char *fixed[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    for (size_t number = 0; number < sizeof masked / sizeof *masked; number++)
        mask(masked[number]);
    for (size_t number = 0; number < sizeof fixed / sizeof *fixed; number++)
        read_only(fixed[number]);
}

static void give_up_privileges(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    unsigned keep = 0xa00405fb & ~((1u << CAP_NET_RAW) | (1u << CAP_MKNOD));
    struct __user_cap_data_struct data[2] = {{keep, keep, 0}, {0, 0, 0}};
    for (int number = 0; number <= CAP_LAST_CAP; number++)
        if (number >= 32 || !(keep >> number & 1))
            check(prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "bounding set");
    check(syscall(SYS_capset, &header, data), "capset");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

int main(int count, char **word) {
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    char path[512];
    int go[2], status = 0;
    struct timespec begin;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    fprintf(stderr, "%ld\n", begin.tv_sec * 1000000L + begin.tv_nsec / 1000);
    if (count < 4)
        return 2;
    check(pipe2(go, O_CLOEXEC), "pipe");
    for (int number = 3; number < count; number++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", word[number], word[2]);
        check(mkdir(path, 0755), path);
    }
    arguments.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET;
    int pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    check(pid, "clone3");
    if (pid == 0) {
        char *words[] = {"/payload", NULL}, *environment[] = {"PATH=/bin", NULL};
        for (int number = 3; number < count; number++) {
            snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s/cgroup.procs", word[number], word[2]);
            put(path, "0");
        }
        check(unshare(CLONE_NEWCGROUP), "cgroup namespace");
        check(sethostname("box", 3), "hostname");
        loopback_up();
        file_systems(word[1], count - 3, word + 3);
        put("/proc/self/oom_score_adj", "0");
        give_up_privileges();
        check(read(go[0], path, 1) == 1 ? 0 : -1, "word to go on");
        execve(words[0], words, environment);
        _exit(127);
    }
    for (int number = 3; number < count; number++)
        if (strstr(word[number], "pids")) {
            snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s/pids.max", word[number], word[2]);
            put(path, "4096");
        }
    check(write(go[1], "S", 1), "word to go on");
    waitpid(pid, &status, 0);
    for (int number = 3; number < count; number++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", word[number], word[2]);
        for (int attempt = 0; rmdir(path) < 0 && attempt < 100; attempt++)
            usleep(1000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}
