/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU TCG plugin: counts how often each instruction is executed.
 *
 *   -plugin count.so,image=PATH,range=BASE:SIZE[,range=BASE:SIZE]
 *
 * PATH is an array of uint64 in the host's byte order, one for every two bytes
 * of the ranges in their order.  It is mapped, so that another process can
 * read the counts while the guest runs.  PATH must have 4 * (all SIZEs) bytes.
 * What runs outside the ranges is not counted.
 *
 * Distributions ship no headers for plugins, hence the declarations by hand
 * (QEMU 7.2, include/qemu/qemu-plugin.h).
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define PLUGIN_API_VERSION 1
#define MOST_RANGES 4u
#define BYTES_PER_COUNT 2u /* the least length of a Thumb instruction */

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(qemu_plugin_id_t,
                                                            struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn,
                                                enum qemu_plugin_op op, void *value,
                                                uint64_t operand);

EXPORT int qemu_plugin_version = PLUGIN_API_VERSION;

static struct {
  uint64_t base;
  uint64_t size;
  uint64_t *counts;
} ranges[MOST_RANGES];
static size_t n_ranges;

/* NULL outside the ranges. */
static uint64_t *count_of(uint64_t address)
{
  for (size_t r = 0; r < n_ranges; ++r) {
    if (address >= ranges[r].base && address - ranges[r].base < ranges[r].size) {
      return ranges[r].counts + (address - ranges[r].base) / BYTES_PER_COUNT;
    }
  }
  return NULL;
}

/* Added by the translated code itself, before each instruction: exact, and no call. */
static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); ++i) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    uint64_t *count = count_of(qemu_plugin_insn_vaddr(insn));
    if (count != NULL) {
      qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, count, 1);
    }
  }
}

static int refuse(const char *what)
{
  (void)fprintf(stderr, "count plugin: %s\n", what);
  return -1;
}

static int add_range(const char *text)
{
  char *end;
  if (n_ranges == MOST_RANGES) {
    return refuse("too many ranges");
  }
  ranges[n_ranges].base = strtoull(text, &end, 0);
  ranges[n_ranges].size = *end == ':' ? strtoull(end + 1, NULL, 0) : 0;
  return ranges[n_ranges++].size == 0 ? refuse("range=BASE:SIZE") : 0;
}

static int map(const char *image)
{
  uint64_t size = 0;
  for (size_t r = 0; r < n_ranges; ++r) {
    size += ranges[r].size / BYTES_PER_COUNT * sizeof(uint64_t);
  }
  struct stat status;
  const int fd = image == NULL ? -1 : open(image, O_RDWR);
  if (size == 0 || fd < 0 || fstat(fd, &status) != 0 || (uint64_t)status.st_size != size) {
    return refuse("image: cannot be opened, or not of the ranges' size");
  }
  uint64_t *counts = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  (void)close(fd);
  if (counts == MAP_FAILED) {
    return refuse("mmap failed");
  }
  for (size_t r = 0; r < n_ranges; ++r) {
    ranges[r].counts = counts;
    counts += ranges[r].size / BYTES_PER_COUNT;
  }
  return 0;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv);

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
  const char *image = NULL;
  (void)info;
  for (int i = 0; i < argc; ++i) {
    if (strncmp(argv[i], "image=", 6) == 0) {
      image = argv[i] + 6;
    } else if (strncmp(argv[i], "range=", 6) != 0) {
      return refuse("unknown argument");
    } else if (add_range(argv[i] + 6) != 0) {
      return -1;
    }
  }
  if (map(image) != 0) {
    return -1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  return 0;
}
