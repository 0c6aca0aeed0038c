/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU TCG plugin: counts how often each instruction is executed.
 *
 *   -plugin count.so,image=PATH,range=BASE:SIZE[,range=BASE:SIZE]
 *
 * PATH is an array of uint64 in the host's byte order, one for every two bytes
 * of the ranges in their order.  It is mapped, so that another process can
 * read the counts while the guest runs (under version 2 over a part of the
 * memory that QEMU counts in).  PATH must have 4 * (all SIZEs) bytes.
 * What runs outside the ranges is not counted.
 */
#include "qemu_plugin.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_RANGES 4u
#define BYTES_PER_COUNT 2u /* the least length of a Thumb instruction */

static struct {
  uint64_t base;
  uint64_t size;
} ranges[MOST_RANGES];
static size_t n_ranges;
static struct {
  int file;
  size_t size;
} image;
static uint8_t *counts; /* the image's, NULL until it is mapped */
static qemu_plugin_u64 board; /* version 2: the counts are the scoreboard's, from this offset */

/* Bytes from the first count to this address's; SIZE_MAX outside the ranges. */
static size_t place_of(uint64_t address) {
  uint64_t before = 0;
  for (size_t r = 0; r < n_ranges; ++r) {
    if (address >= ranges[r].base && address - ranges[r].base < ranges[r].size) {
      return (before + address - ranges[r].base) / BYTES_PER_COUNT * sizeof(uint64_t);
    }
    before += ranges[r].size;
  }
  return SIZE_MAX;
}

static int refuse(const char *what) {
  (void)fprintf(stderr, "count plugin: %s\n", what);
  return -1;
}

static int add_range(const char *text) {
  char *end;
  if (n_ranges == MOST_RANGES) {
    return refuse("too many ranges");
  }
  ranges[n_ranges].base = strtoull(text, &end, 0);
  ranges[n_ranges].size = *end == ':' ? strtoull(end + 1, NULL, 0) : 0;
  return ranges[n_ranges++].size == 0 ? refuse("range=BASE:SIZE") : 0;
}

static int open_image(const char *path) {
  for (size_t r = 0; r < n_ranges; ++r) {
    image.size += ranges[r].size / BYTES_PER_COUNT * sizeof(uint64_t);
  }
  struct stat status;
  image.file = path == NULL ? -1 : open(path, O_RDWR);
  if (image.size == 0 || image.file < 0 || fstat(image.file, &status) != 0 || (uint64_t)status.st_size != image.size) {
    return refuse("image: cannot be opened, or not of the ranges' size");
  }
  return 0;
}

/* Where QEMU of version 2 counts: whole pages in the first core's part of a scoreboard. */
static void *reserve(size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  board.score = qemu_plugin_scoreboard_new((bytes + page - 1) / page * page + page);
  uint8_t *part = qemu_plugin_scoreboard_find(board.score, 0);
  board.offset = (page - (uintptr_t)part % page) % page;
  return part + board.offset;
}

static void map(void) {
  void *place = qemu_plugin_version == 1 ? NULL : reserve(image.size);
  const int flags = MAP_SHARED | (place == NULL ? 0 : MAP_FIXED);
  counts = mmap(place, image.size, PROT_READ | PROT_WRITE, flags, image.file, 0);
  if (counts == MAP_FAILED) {
    (void)refuse("mmap failed");
    _exit(1);
  }
  (void)close(image.file);
}

/* Counting is added by the translated code itself, before each instruction: exact, and no call.
 * A scoreboard has a part only for a core that exists: one does when the first code is translated. */
static void on_translation(struct qemu_plugin_tb *tb) {
  if (counts == NULL) {
    map();
  }
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); ++i) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    const size_t place = place_of(qemu_plugin_insn_vaddr(insn));
    if (place == SIZE_MAX) {
      continue;
    }
    if (board.score == NULL) {
      qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, counts + place, 1);
    } else {
      const qemu_plugin_u64 count = {board.score, board.offset + place};
      qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, QEMU_PLUGIN_INLINE_ADD_U64, count, 1);
    }
  }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
  const char *path = NULL;
  for (int i = 0; i < argc; ++i) {
    if (strncmp(argv[i], "image=", 6) == 0) {
      path = argv[i] + 6;
    } else if (strncmp(argv[i], "range=", 6) != 0) {
      return refuse("unknown argument");
    } else if (add_range(argv[i] + 6) != 0) {
      return -1;
    }
  }
  if (open_image(path) != 0) {
    return -1;
  }
  scl_on_translation(id, info, on_translation);
  return 0;
}
