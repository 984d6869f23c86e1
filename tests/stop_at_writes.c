// LD_PRELOAD: a process that calls stop_under(FOLDER) stops itself before each call that changes files in FOLDER, and in the middle
// of each write, until it is continued. Its files are then those that a kill at that moment leaves.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char prefix[4096];
static pid_t watched;
void stop_under(const char *folder) { strncpy(prefix, folder, sizeof prefix - 1), watched = getpid(); }

static int inside(const char *path) { return watched == getpid() && path && !strncmp(path, prefix, strlen(prefix)); }
static int inside_fd(int file) {
  char link[64], path[4096] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  return watched == getpid() && readlink(link, path, sizeof path - 1) > 0 && inside(path);
}
// The signal is for this thread: sent to the process, another one could take it, and this one would write on.
static void stop(void) { syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), SIGSTOP); }

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define HALVES(first, rest) { stop(); size_t half = n / 2; ssize_t done = half ? first : 0; if (done < 0) return done; \
  if (half) stop(); ssize_t more = rest; return more < 0 ? more : done + more; }
ssize_t write(int f, const void *b, size_t n) {
  REAL(write); if (!inside_fd(f)) return real(f, b, n);
  HALVES(real(f, b, half), real(f, (const char *)b + done, n - done)) }
ssize_t pwrite64(int f, const void *b, size_t n, off64_t at) {
  REAL(pwrite64); if (!inside_fd(f)) return real(f, b, n, at);
  HALVES(real(f, b, half, at), real(f, (const char *)b + done, n - done, at + done)) }
ssize_t pwrite(int f, const void *b, size_t n, off_t at) { return pwrite64(f, b, n, at); }
size_t fwrite(const void *b, size_t size, size_t n, FILE *f) {
  REAL(fwrite); if (!inside_fd(fileno(f))) return real(b, size, n, f);
  stop(); size_t done = real(b, size, n / 2, f); fflush(f); stop();
  return done + real((const char *)b + done * size, size, n - done, f); }

#define BEFORE(name, where, given, passed) int name given { REAL(name); if (where) stop(); return real passed; }
BEFORE(rename, inside(b), (const char *a, const char *b), (a, b))
BEFORE(unlink, inside(a), (const char *a), (a))
BEFORE(unlinkat, inside(a) || inside_fd(d), (int d, const char *a, int flags), (d, a, flags))
BEFORE(rmdir, inside(a), (const char *a), (a))
BEFORE(mkdir, inside(a), (const char *a, mode_t mode), (a, mode))
BEFORE(ftruncate64, inside_fd(f), (int f, off64_t n), (f, n))
#define OPENS(name, given, ...) int name given { REAL(name); mode_t mode = 0; va_list more; va_start(more, flags); \
  if (flags & O_CREAT) mode = va_arg(more, mode_t); va_end(more); \
  if (flags & (O_WRONLY | O_RDWR) && inside(path)) stop(); return real(__VA_ARGS__, flags, mode); }
OPENS(open, (const char *path, int flags, ...), path)
OPENS(open64, (const char *path, int flags, ...), path)
OPENS(openat, (int d, const char *path, int flags, ...), d, path)
OPENS(openat64, (int d, const char *path, int flags, ...), d, path)
#define FOPENS(name) FILE *name(const char *path, const char *mode) { REAL(name); if (mode[0] != 'r' && inside(path)) stop(); return real(path, mode); }
FOPENS(fopen)
FOPENS(fopen64)
