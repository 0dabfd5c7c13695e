/* Preloaded into a process under test: sees every call that changes files below one directory, and at the n-th of them
   kills the process, lets the call fail, or does half of it. Without fault_arm() it does nothing.

   It can also write down what was done, with the data, for the simulator of power cuts (power_cut.py). One entry:
   a line "kind inode offset length flags\tpath\tsecond path\n" and `length` bytes. Kinds: c create, w write, s sync,
   t truncate to `offset`, r rename, l link, u unlink, m mkdir, d rmdir. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { NOTHING, KILL, FAIL, FAIL_ON, HALF_KILL, HALF_FAIL };

static char watched[PATH_MAX];
static size_t watched_length;
static enum action action;
static long trigger, counted, last_failed_sync;
static int failure, log_file = -1, is_sync_skipped;
static char kinds[1 << 16];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Exported: called by the test through ctypes. Kinds of calls that are to fail are those in `only`; "" is all. */
static char only_kinds[16];

void fault_arm(const char *directory, int what, long at, int error, const char *only, int log, int skip_sync) {
    snprintf(watched, sizeof watched, "%s", directory);
    watched_length = strlen(watched);
    snprintf(only_kinds, sizeof only_kinds, "%s", only);
    action = what, trigger = at, failure = error, log_file = log, is_sync_skipped = skip_sync;
    counted = last_failed_sync = 0;
}

void fault_disarm(void) { watched_length = 0; }

/* One letter for each counted call, in order. */
const char *fault_kinds(void) { return kinds; }

static int is_watched(const char *path) {
    return watched_length && !strncmp(path, watched, watched_length) &&
           (path[watched_length] == '/' || path[watched_length] == 0);
}

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return 1;
}

static int full_path(int folder, const char *name, char *path) {
    char start[PATH_MAX];
    if (name[0] == '/')
        return snprintf(path, PATH_MAX, "%s", name) > 0;
    if (folder == AT_FDCWD ? getcwd(start, sizeof start) == NULL : !path_of(folder, start))
        return 0;
    return snprintf(path, PATH_MAX, "%s/%s", start, name) > 0;
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* 0: go on; 1: fail with `failure`; 2: do half and then fail or die. */
static int count_call(char kind) {
    pthread_mutex_lock(&lock);
    long number = 0;
    if (!only_kinds[0] || strchr(only_kinds, kind)) {
        number = ++counted;
        if (number < (long)sizeof kinds)
            kinds[number - 1] = kind, kinds[number] = 0;
    }
    pthread_mutex_unlock(&lock);
    if (number == 0 || action == NOTHING || number < trigger || (number > trigger && action != FAIL_ON))
        return 0;
    if (action == KILL || (action == HALF_KILL && kind != 'w'))
        die();
    return (action == HALF_KILL || action == HALF_FAIL) && kind == 'w' ? 2 : 1;
}

static void log_line(char kind, unsigned long inode, long offset, size_t length, int flags, const char *path,
                     const char *second) {
    char line[2 * PATH_MAX + 128];
    int size = snprintf(line, sizeof line, "%c %lu %ld %zu %d\t%s\t%s\n", kind, inode, offset, length, flags, path, second);
    if (syscall(SYS_write, log_file, line, size) != size)
        abort();
}

static unsigned long inode_of(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) ? 0 : status.st_ino;
}

/* Names. */

static int open_any(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    struct stat status;
    if (!watched_length || !(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE ||
        !full_path(folder, name, path) || !is_watched(path))
        return syscall(SYS_openat, folder, name, flags, mode);
    int existed = !fstatat(folder, name, &status, 0);
    if (existed && !(flags & (O_TRUNC | O_EXCL)))
        return syscall(SYS_openat, folder, name, flags, mode);
    if (count_call('c')) {
        errno = failure;
        return -1;
    }
    int descriptor = syscall(SYS_openat, folder, name, flags, mode);
    if (descriptor >= 0 && log_file >= 0) {
        int saved = errno;
        if (!existed)
            log_line('c', inode_of(descriptor), 0, 0, 0, path, "");
        else if (flags & O_TRUNC)
            log_line('t', inode_of(descriptor), 0, 0, 0, path, "");
        errno = saved;
    }
    return descriptor;
}

#define MODE(flags)                                                                                                    \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_any(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_any(folder, path, flags, mode); }
int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static int rename_any(int folder, const char *from, int second_folder, const char *to, unsigned flags) {
    char path[PATH_MAX], second[PATH_MAX];
    int watch = watched_length && full_path(folder, from, path) && full_path(second_folder, to, second) &&
                (is_watched(path) || is_watched(second));
    if (watch && count_call('r')) {
        errno = failure;
        return -1;
    }
    int result = syscall(SYS_renameat2, folder, from, second_folder, to, flags);
    if (watch && result == 0 && log_file >= 0)
        log_line('r', 0, 0, 0, flags, path, second);
    return result;
}

int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return rename_any(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return rename_any(a, from, b, to, flags); }

static int link_any(int folder, const char *from, int second_folder, const char *to, int flags) {
    char path[PATH_MAX], second[PATH_MAX];
    int watch = watched_length && full_path(folder, from, path) && full_path(second_folder, to, second) &&
                is_watched(second);
    if (watch && count_call('l')) {
        errno = failure;
        return -1;
    }
    int result = syscall(SYS_linkat, folder, from, second_folder, to, flags);
    if (watch && result == 0 && log_file >= 0)
        log_line('l', 0, 0, 0, 0, path, second);
    return result;
}

int link(const char *from, const char *to) { return link_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return link_any(a, from, b, to, flags); }

static int remove_any(int folder, const char *name, int flags) {
    char path[PATH_MAX], kind = flags & AT_REMOVEDIR ? 'd' : 'u';
    int watch = watched_length && full_path(folder, name, path) && is_watched(path);
    if (watch && count_call(kind)) {
        errno = failure;
        return -1;
    }
    int result = syscall(SYS_unlinkat, folder, name, flags);
    if (watch && result == 0 && log_file >= 0)
        log_line(kind, 0, 0, 0, 0, path, "");
    return result;
}

int unlink(const char *path) { return remove_any(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return remove_any(folder, path, flags); }
int rmdir(const char *path) { return remove_any(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    struct stat status;
    int watch = watched_length && full_path(folder, name, path) && is_watched(path) && fstatat(folder, name, &status, 0);
    if (watch && count_call('m')) {
        errno = failure;
        return -1;
    }
    int result = syscall(SYS_mkdirat, folder, name, mode);
    if (watch && result == 0 && log_file >= 0)
        log_line('m', fstatat(folder, name, &status, 0) ? 0 : status.st_ino, 0, 0, 0, path, "");
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* Data. */

static ssize_t write_any(int descriptor, const struct iovec *parts, int count, off_t offset, int has_offset) {
    char path[PATH_MAX];
    int verdict = 0, watch = watched_length && path_of(descriptor, path) && is_watched(path);
    struct iovec part;
    size_t total = 0;
    for (int i = 0; i < count; i++)
        total += parts[i].iov_len;
    if (watch && (verdict = count_call('w')) == 1) {
        errno = failure;
        return -1;
    }
    if (verdict == 2 && total < 2 && action == HALF_FAIL) {
        errno = failure;
        return -1;
    }
    if (verdict == 2) /* half of what comes first */
        part = (struct iovec){parts[0].iov_base, count > 1 ? parts[0].iov_len : total / 2}, parts = &part, count = 1;
    ssize_t written = has_offset ? syscall(SYS_pwritev, descriptor, parts, count, offset, 0L)
                                 : syscall(SYS_writev, descriptor, parts, count);
    if (watch && written > 0 && log_file >= 0) {
        off_t place = has_offset ? offset : syscall(SYS_lseek, descriptor, 0L, SEEK_CUR) - written;
        int flags = fcntl(descriptor, F_GETFL) & O_DSYNC ? 1 : 0;
        log_line('w', inode_of(descriptor), place, written, flags, path, "");
        size_t left = written;
        for (int i = 0; i < count && left; i++) {
            size_t size = parts[i].iov_len < left ? parts[i].iov_len : left;
            if ((size_t)syscall(SYS_write, log_file, parts[i].iov_base, size) != size)
                abort();
            left -= size;
        }
    }
    if (verdict == 2 && action == HALF_KILL)
        die();
    if (verdict == 2) /* the next write, of the rest, finds the disk full */
        action = FAIL, trigger = counted + 1;
    return written;
}

#define ONE(data, size) &(struct iovec){(void *)(data), size}, 1

ssize_t write(int fd, const void *data, size_t size) { return write_any(fd, ONE(data, size), 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return write_any(fd, ONE(data, size), at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return write_any(fd, ONE(data, size), at, 1); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return write_any(fd, parts, count, 0, 0); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return write_any(fd, parts, count, at, 1); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return write_any(fd, parts, count, at, 1); }

static int truncate_any(int descriptor, off_t length) {
    char path[PATH_MAX];
    int watch = watched_length && path_of(descriptor, path) && is_watched(path);
    if (watch && count_call('t')) {
        errno = failure;
        return -1;
    }
    int result = syscall(SYS_ftruncate, descriptor, length);
    if (watch && result == 0 && log_file >= 0)
        log_line('t', inode_of(descriptor), length, 0, 0, path, "");
    return result;
}

int ftruncate(int descriptor, off_t length) { return truncate_any(descriptor, length); }
int ftruncate64(int descriptor, off64_t length) { return truncate_any(descriptor, length); }

static int sync_any(int descriptor, long call) {
    char path[PATH_MAX];
    int watch = watched_length && path_of(descriptor, path) && is_watched(path);
    if (watch && count_call('s')) {
        errno = failure;
        return -1;
    }
    int result = watch && is_sync_skipped ? 0 : syscall(call, descriptor);
    if (watch && result == 0 && log_file >= 0)
        log_line('s', inode_of(descriptor), 0, 0, 0, path, "");
    return result;
}

int fsync(int descriptor) { return sync_any(descriptor, SYS_fsync); }
int fdatasync(int descriptor) { return sync_any(descriptor, SYS_fdatasync); }
