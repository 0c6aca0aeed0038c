/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU TCG plugin: makes a window of an emulated chip's flash persistent.
 *
 *   -plugin flash_window.so,block=NAME,image=PATH,offset=BYTES,size=BYTES
 *
 * maps PATH over [offset, offset + size) of QEMU's RAM block NAME.  What the
 * guest's flash controller writes is then in the file at once, so that it
 * outlives even a killed QEMU.  PATH must have `size` bytes.
 */
#include "qemu_plugin.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Not of the plugin interface: QEMU exports these to its own modules (include/exec/cpu-common.h). */
typedef struct RAMBlock RAMBlock;
int qemu_ram_foreach_block(int (*callback)(RAMBlock *, void *), void *data);
const char *qemu_ram_get_idstr(RAMBlock *block);
void *qemu_ram_get_host_addr(RAMBlock *block);
uint64_t qemu_ram_get_used_length(RAMBlock *block);

static struct {
  char *block;
  char *image;
  uint64_t offset;
  uint64_t size;
  bool attached;
} window;

static void fail(const char *what) {
  (void)fprintf(stderr, "flash_window: %s\n", what);
  _exit(1);
}

static int attach_to(RAMBlock *block, void *data) {
  (void)data;
  if (strcmp(qemu_ram_get_idstr(block), window.block) != 0) {
    return 0;
  }
  const uint64_t length = qemu_ram_get_used_length(block);
  if (window.offset > length || window.size > length - window.offset) {
    fail("the window is not inside the block");
  }
  struct stat status;
  const int fd = open(window.image, O_RDWR);
  if (fd < 0 || fstat(fd, &status) != 0 || (uint64_t)status.st_size != window.size) {
    fail("image: cannot be opened, or not of the window's size");
  }
  uint8_t *base = (uint8_t *)qemu_ram_get_host_addr(block) + window.offset;
  if (mmap(base, window.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != base) {
    fail("mmap failed (offset and size must be multiples of the host's page size)");
  }
  (void)close(fd);
  window.attached = true;
  return 1;
}

/* RAM blocks do not exist yet when plugins are installed; they do when the
 * first guest instruction is translated, before it runs. */
static void on_translation(struct qemu_plugin_tb *tb) {
  (void)tb;
  if (!window.attached) {
    (void)qemu_ram_foreach_block(attach_to, NULL);
    if (!window.attached) {
      fail("no such RAM block");
    }
  }
}

static const char *value_of(const char *argument, const char *key) {
  const size_t length = strlen(key);
  return strncmp(argument, key, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
  for (int i = 0; i < argc; ++i) {
    const char *value;
    if ((value = value_of(argv[i], "block")) != NULL) {
      window.block = strdup(value);
    } else if ((value = value_of(argv[i], "image")) != NULL) {
      window.image = strdup(value);
    } else if ((value = value_of(argv[i], "offset")) != NULL) {
      window.offset = strtoull(value, NULL, 0);
    } else if ((value = value_of(argv[i], "size")) != NULL) {
      window.size = strtoull(value, NULL, 0);
    } else {
      (void)fprintf(stderr, "flash_window: unknown argument %s\n", argv[i]);
      return -1;
    }
  }
  if (window.block == NULL || window.image == NULL || window.size == 0) {
    (void)fprintf(stderr, "flash_window: block, image and size are needed\n");
    return -1;
  }
  scl_on_translation(id, info, on_translation);
  return 0;
}
