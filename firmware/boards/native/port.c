/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The board that is a POSIX process, and the reference for porters.
 *
 *   firmware [--tcp PORT | --pty [LINK]] [--flash FILE]
 *
 * --tcp PORT   serial line on 127.0.0.1:PORT (0: any free port); one client at
 *              a time, the next one is accepted when it has gone; the engine's
 *              state does not depend on clients
 * --pty LINK   serial line on a pseudo-terminal (the default), LINK points to it
 * --flash FILE the flash device, created erased when missing (flash.img); in
 *              FILE.wear how often each sector was erased (uint32 each): one
 *              that was SCL_FLASH_ENDURANCE times cannot be erased again
 *
 * SIGUSR1 is the reset button.  A restart executes the program again and keeps
 * the serial line, as a board keeps its UART, so clients stay connected.
 */
#ifdef __linux__
#define _GNU_SOURCE /* dl_iterate_phdr; all of the following */
#include <link.h>
#elif !defined _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* posix_openpt */
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "scl_board.h"
#include "scl_app.h"
#include "scl_port.h"

/* Descriptors that survive a restart have fixed numbers, so that the signal
 * handler has nothing to compute. */
enum { FD_LISTEN = 100, FD_LINE = 101, FD_FLASH = 102, FD_WEAR = 103 };
enum { READ_WAIT_MS = 20, WRITE_WAIT_MS = 1000 };
enum { ERROR_RANGE = -1, ERROR_IO = -2, ERROR_NOT_ERASED = -3, ERROR_WORN = -4 };

#define RESTART_VARIABLE "SCL_NATIVE_RESTART="
#define KEPT_VARIABLE "SCL_NATIVE_KEPT="
#define MOST_VARIABLES 1024
extern char **environ;

static struct {
  char path[4096];
  char **argv;
  const char *environment[MOST_VARIABLES + 3]; /* [0] is RESTART_VARIABLE..., [1] is kept */
  char kept[sizeof KEPT_VARIABLE + 10];
  uint32_t kept_word;
  bool tcp;
  scl_reset_reason_t reason;
} process;

static struct {
  uint8_t bytes[4096];
  size_t used, size;
} input;

static void fail(const char *what) {
  perror(what);
  exit(EXIT_FAILURE);
}

/* ---- restart ------------------------------------------------------------ */

/* Only async-signal-safe calls: also the body of the signal handler. */
static void execute_again(const char *reason) {
  process.environment[0] = reason;
  (void)execve(process.path, process.argv, (char *const *)(uintptr_t)process.environment);
  _exit(EXIT_FAILURE);
}

static void on_reset_button(int signal_number) {
  (void)signal_number;
  execute_again(RESTART_VARIABLE "pin");
}

static void on_watchdog(int signal_number) {
  (void)signal_number;
  execute_again(RESTART_VARIABLE "watchdog");
}

void scl_port_keep(uint32_t word) {
  process.kept_word = word;
  (void)snprintf(process.kept, sizeof process.kept, KEPT_VARIABLE "%lu", (unsigned long)word);
}

uint32_t scl_port_kept(void) { return process.kept_word; }

static scl_reset_reason_t reason_named(const char *name) {
  static const struct {
    const char *name;
    scl_reset_reason_t reason;
  } reasons[] = {{"pin", SCL_RESET_PIN}, {"watchdog", SCL_RESET_WATCHDOG}};
  for (size_t k = 0; k < sizeof reasons / sizeof reasons[0]; ++k) {
    if (strcmp(name, reasons[k].name) == 0) {
      return reasons[k].reason;
    }
  }
  return SCL_RESET_SOFTWARE;
}

void scl_port_restart(void) { execute_again(RESTART_VARIABLE "software"); }

static void prepare_restart(char **argv) {
  const ssize_t length = readlink("/proc/self/exe", process.path, sizeof process.path - 1);
  if (length > 0) {
    process.path[length] = '\0';
  } else { /* no /proc: macOS, BSD */
    char *resolved = realpath(argv[0], NULL);
    if (resolved == NULL || strlen(resolved) >= sizeof process.path) {
      fail(argv[0]);
    }
    memcpy(process.path, resolved, strlen(resolved) + 1);
    free(resolved);
  }
  process.argv = argv;

  const size_t name_size = strlen(RESTART_VARIABLE);
  const size_t kept_size = strlen(KEPT_VARIABLE);
  size_t count = 2;
  process.reason = SCL_RESET_POWER_ON;
  for (char **entry = environ; *entry != NULL; ++entry) {
    if (strncmp(*entry, RESTART_VARIABLE, name_size) == 0) {
      process.reason = reason_named(*entry + name_size);
    } else if (strncmp(*entry, KEPT_VARIABLE, kept_size) == 0) {
      process.kept_word = (uint32_t)strtoul(*entry + kept_size, NULL, 10);
    } else if (count <= MOST_VARIABLES) {
      process.environment[count++] = *entry;
    }
  }
  process.environment[count] = NULL;
  process.environment[1] = process.kept;
  scl_port_keep(process.kept_word);
}

static void install_signals(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  (void)sigemptyset(&action.sa_mask);
  action.sa_handler = SIG_IGN;
  (void)sigaction(SIGPIPE, &action, NULL); /* a client that disconnects must not end the process */
  action.sa_handler = on_reset_button;
  (void)sigaction(SIGUSR1, &action, NULL);
  action.sa_handler = on_watchdog;
  (void)sigaction(SIGPROF, &action, NULL);

  /* Executed out of the handler, the program inherits the signal blocked. */
  sigset_t unblock;
  (void)sigemptyset(&unblock);
  (void)sigaddset(&unblock, SIGUSR1);
  (void)sigaddset(&unblock, SIGPROF);
  (void)sigprocmask(SIG_UNBLOCK, &unblock, NULL);
}

/* ---- watchdog ------------------------------------------------------------ */

/* Processor time: a host that is busy, asleep or debugging does not look like an engine that hangs. */
void scl_port_watchdog_feed(void) {
  const struct itimerval once = {
      .it_value = {.tv_sec = SCL_WATCHDOG_MS / 1000U, .tv_usec = SCL_WATCHDOG_MS % 1000U * 1000U}};
  (void)setitimer(ITIMER_PROF, &once, NULL);
}

/* ---- serial line --------------------------------------------------------- */

static bool is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }

static void move_fd(int from, int to) {
  if (from != to) {
    if (dup2(from, to) < 0) {
      fail("dup2");
    }
    (void)close(from);
  }
}

static void set_nonblocking(int fd) { (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static void listen_on(unsigned long port) {
  const int on = 1;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address;
  socklen_t size = sizeof address;
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons((uint16_t)port);
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4) != 0 ||
      getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
    fail("firmware: listening");
  }
  move_fd(fd, FD_LISTEN);
  set_nonblocking(FD_LISTEN);
  (void)printf("listening on socket://127.0.0.1:%u\n", (unsigned)ntohs(address.sin_port));
  (void)fflush(stdout);
}

static void open_pty(const char *link_path) {
  const int fd = posix_openpt(O_RDWR | O_NOCTTY);
  const char *name = NULL;
  if (fd < 0 || grantpt(fd) != 0 || unlockpt(fd) != 0 || (name = ptsname(fd)) == NULL) {
    fail("firmware: pseudo-terminal");
  }
  /* Left open, so that the line stays up when a client closes it. */
  const int slave = open(name, O_RDWR | O_NOCTTY);
  struct termios settings;
  if (slave < 0 || tcgetattr(slave, &settings) != 0) {
    fail(name);
  }
  settings.c_iflag = 0;
  settings.c_oflag = 0;
  settings.c_lflag = 0;
  settings.c_cflag = (settings.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
  if (tcsetattr(slave, TCSANOW, &settings) != 0) {
    fail(name);
  }
  if (link_path != NULL) {
    (void)unlink(link_path);
    if (symlink(name, link_path) != 0) {
      fail(link_path);
    }
  }
  move_fd(fd, FD_LINE);
  set_nonblocking(FD_LINE);
  (void)printf("serial line on %s\n", name);
  (void)fflush(stdout);
}

static bool wait_for(int fd, short events, int milliseconds) {
  struct pollfd entry = {.fd = fd, .events = events, .revents = 0};
  return poll(&entry, 1, milliseconds) > 0;
}

static void drop_client(void) {
  input.used = input.size = 0;
  if (process.tcp) {
    (void)close(FD_LINE);
  }
}

/* True when there is a client; otherwise waits a little for one. */
static bool have_client(void) {
  if (!process.tcp || is_open(FD_LINE)) {
    return true;
  }
  if (!wait_for(FD_LISTEN, POLLIN, READ_WAIT_MS)) {
    return false;
  }
  const int client = accept(FD_LISTEN, NULL, NULL);
  if (client < 0) {
    return false;
  }
  const int on = 1;
  (void)setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  move_fd(client, FD_LINE);
  set_nonblocking(FD_LINE);
  return true;
}

static bool would_block(void) {
  /* One value on Linux, two names in POSIX. */
  return errno == EAGAIN || errno == EINTR;
}

static void fill_input(void) {
  if (!have_client() || !wait_for(FD_LINE, POLLIN, READ_WAIT_MS)) {
    return;
  }
  const ssize_t got = read(FD_LINE, input.bytes, sizeof input.bytes);
  input.used = 0;
  input.size = got > 0 ? (size_t)got : 0;
  if (got == 0 || (got < 0 && !would_block())) {
    drop_client();
  }
}

int32_t scl_port_read_byte(void) {
  if (input.used == input.size) {
    fill_input();
  }
  return input.used < input.size ? (int32_t)input.bytes[input.used++] : -1;
}

/* Bytes for nobody are lost, as on a UART. */
void scl_port_write(const uint8_t *data, uint32_t size) {
  if (process.tcp && !is_open(FD_LINE)) {
    return;
  }
  while (size > 0) {
    const ssize_t sent = write(FD_LINE, data, size);
    if (sent >= 0) {
      data += sent;
      size -= (uint32_t)sent;
    } else if (!would_block()) {
      drop_client();
      return;
    } else if (!wait_for(FD_LINE, POLLOUT, WRITE_WAIT_MS) && !process.tcp) {
      return; /* nobody reads the pseudo-terminal */
    }
  }
}

/* ---- timer --------------------------------------------------------------- */

uint32_t scl_port_ticks(void) {
  struct timespec now;
  (void)clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint32_t)((uint64_t)now.tv_sec * 10000000U + (uint64_t)now.tv_nsec / 100U);
}

/* ---- flash: NOR semantics on a file -------------------------------------- */

static bool outside(uint32_t address, uint32_t size) {
  return address > SCL_FLASH_SIZE || size > SCL_FLASH_SIZE - address;
}

/* Every operation reaches the kernel before it returns: a killed process
 * loses nothing. */
static bool write_all(int fd, off_t offset, const uint8_t *data, size_t size) {
  while (size > 0) {
    const ssize_t done = pwrite(fd, data, size, offset);
    if (done < 0 && errno != EINTR) {
      return false;
    }
    if (done > 0) {
      data += done;
      offset += done;
      size -= (size_t)done;
    }
  }
  return true;
}

static bool read_all(int fd, off_t offset, uint8_t *data, size_t size) {
  while (size > 0) {
    const ssize_t done = pread(fd, data, size, offset);
    if (done == 0 || (done < 0 && errno != EINTR)) {
      return false;
    }
    if (done > 0) {
      data += done;
      offset += done;
      size -= (size_t)done;
    }
  }
  return true;
}

static off_t in_device(uint32_t address) { return (off_t)SCL_FLASH_OFFSET + (off_t)address; }

static bool erase_sector(uint32_t address) {
  uint8_t erased[SCL_FLASH_SECTOR];
  memset(erased, (int)SCL_FLASH_ERASED, sizeof erased);
  return write_all(FD_FLASH, in_device(address), erased, sizeof erased);
}

/* Counts an erase.  False when the sector has had all that it endures. */
static bool wear(uint32_t address) {
  uint8_t bytes[4] = {0};
  const off_t at = (off_t)(address / SCL_FLASH_SECTOR) * 4;
  (void)read_all(FD_WEAR, at, bytes, sizeof bytes); /* not counted yet: 0 */
  uint32_t count;
  memcpy(&count, bytes, sizeof count);
  if (count >= SCL_FLASH_ENDURANCE) {
    return false;
  }
  count++;
  memcpy(bytes, &count, sizeof count);
  return write_all(FD_WEAR, at, bytes, sizeof bytes);
}

static void open_wear(const char *flash_path, bool fresh) {
  char path[4096];
  const int length = snprintf(path, sizeof path, "%s.wear", flash_path);
  const int fd = length < (int)sizeof path ? open(path, O_RDWR | O_CREAT | (fresh ? O_TRUNC : 0), 0644) : -1;
  if (fd < 0) {
    fail(path);
  }
  move_fd(fd, FD_WEAR);
}

static void open_flash(const char *path) {
  const int fd = open(path, O_RDWR | O_CREAT, 0644);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) {
    fail(path);
  }
  move_fd(fd, FD_FLASH);
  open_wear(path, status.st_size == 0);
  const off_t end = in_device(SCL_FLASH_SIZE);
  if (status.st_size >= end) {
    return;
  }
  if (status.st_size != 0) {
    (void)fprintf(stderr, "firmware: %s has %lld bytes, the flash has %lld: delete it to start over\n", path,
                  (long long)status.st_size, (long long)end);
    exit(EXIT_FAILURE);
  }
  for (uint32_t address = 0; address < SCL_FLASH_SIZE; address += SCL_FLASH_SECTOR) {
    if (!erase_sector(address)) {
      fail(path);
    }
  }
}

int32_t scl_port_flash_read(uint32_t address, uint8_t *data, uint32_t size) {
  if (outside(address, size)) {
    return ERROR_RANGE;
  }
  return read_all(FD_FLASH, in_device(address), data, size) ? 0 : ERROR_IO;
}

int32_t scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  if (outside(address, size) || (address | size) % SCL_FLASH_PROGRAM_UNIT != 0U) {
    return ERROR_RANGE;
  }
  bool lost_bits = false;
  while (size > 0) {
    uint8_t cells[256];
    const uint32_t part = size < sizeof cells ? size : (uint32_t)sizeof cells;
    if (!read_all(FD_FLASH, in_device(address), cells, part)) {
      return ERROR_IO;
    }
    for (uint32_t i = 0; i < part; ++i) { /* programming only moves bits away from the erased value */
      cells[i] = (uint8_t)(SCL_FLASH_ERASED != 0U ? cells[i] & data[i] : cells[i] | data[i]);
      lost_bits = lost_bits || cells[i] != data[i];
    }
    if (!write_all(FD_FLASH, in_device(address), cells, part)) {
      return ERROR_IO;
    }
    address += part;
    data += part;
    size -= part;
  }
  return lost_bits ? ERROR_NOT_ERASED : 0;
}

int32_t scl_port_flash_erase(uint32_t address) {
  if (outside(address, SCL_FLASH_SECTOR) || address % SCL_FLASH_SECTOR != 0U) {
    return ERROR_RANGE;
  }
  if (!wear(address)) {
    return ERROR_WORN;
  }
  return erase_sector(address) ? 0 : ERROR_IO;
}

/* ---- the rest of the contract --------------------------------------------- */

void scl_port_init(void) {}

scl_reset_reason_t scl_port_reset_reason(void) { return process.reason; }

uint32_t scl_port_stack_used(void) { return 0; }

/* Constants only: a debugger's breakpoints change the code. */
#ifdef __linux__
typedef struct {
  uint32_t range, size;
  const void *begin;
} image_t;

static int look_for_range(struct dl_phdr_info *info, size_t size, void *context) {
  image_t *image = context;
  uint32_t range = 0;
  (void)size;
  for (size_t k = 0; k < info->dlpi_phnum; ++k) {
    const ElfW(Phdr) *segment = &info->dlpi_phdr[k];
    if (segment->p_type == PT_LOAD && segment->p_flags == PF_R && range++ == image->range) {
      image->begin = (const void *)(info->dlpi_addr + segment->p_vaddr);
      image->size = (uint32_t)segment->p_memsz;
    }
  }
  return 1; /* the first object is the program */
}
#endif

uint32_t scl_port_image(uint32_t range, const void **begin) {
#ifdef __linux__
  image_t image = {range, 0, NULL};
  (void)dl_iterate_phdr(look_for_range, &image);
  *begin = image.begin;
  return image.size;
#else
  (void)range, (void)begin;
  return 0;
#endif
}

static void usage(const char *program) {
  (void)fprintf(stderr, "usage: %s [--tcp PORT | --pty [LINK]] [--flash FILE]\n", program);
  exit(2);
}

int main(int argc, char **argv) {
  const char *flash_path = "flash.img", *pty_link = NULL;
  unsigned long port = 0;
  for (int i = 1; i < argc; ++i) {
    const bool has_value = i + 1 < argc && argv[i + 1][0] != '-';
    if (strcmp(argv[i], "--tcp") == 0 && has_value) {
      char *end;
      process.tcp = true;
      port = strtoul(argv[++i], &end, 10);
      if (*end != '\0' || port > UINT16_MAX) {
        usage(argv[0]);
      }
    } else if (strcmp(argv[i], "--pty") == 0) {
      process.tcp = false;
      pty_link = has_value ? argv[++i] : NULL;
    } else if (strcmp(argv[i], "--flash") == 0 && has_value) {
      flash_path = argv[++i];
    } else {
      usage(argv[0]);
    }
  }

  prepare_restart(argv);
  install_signals();
  open_flash(flash_path);
  const bool restarted = process.reason != SCL_RESET_POWER_ON;
  if (!restarted || !is_open(process.tcp ? FD_LISTEN : FD_LINE)) {
    if (process.tcp) {
      listen_on(port);
    } else {
      open_pty(pty_link);
    }
  }
  return scl_app_main();
}
