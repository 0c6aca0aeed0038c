/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flash that takes no program while the file SCL_BROKEN (environment) is there, after as many as the number in it; and
 * no erase while it holds the word "erase".  Linked with --wrap for both.
 */
#include <stdio.h>
#include <stdlib.h>

#include "scl_port.h"

int32_t __real_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size);
int32_t __wrap_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size);

int32_t __real_scl_port_flash_erase(uint32_t address);
int32_t __wrap_scl_port_flash_erase(uint32_t address);

static int broken(void) {
  static int taken;
  const char *path = getenv("SCL_BROKEN");
  FILE *file = path != NULL ? fopen(path, "r") : NULL;
  int limit = 0;
  if (file == NULL) {
    taken = 0;
    return 0;
  }
  const int read = fscanf(file, "%d", &limit);
  (void)fclose(file);
  return read == 1 && ++taken > limit;
}

int32_t __wrap_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  return broken() ? -1 : __real_scl_port_flash_program(address, data, size);
}

int32_t __wrap_scl_port_flash_erase(uint32_t address) {
  const char *path = getenv("SCL_BROKEN");
  FILE *file = path != NULL ? fopen(path, "r") : NULL;
  const int first = file != NULL ? fgetc(file) : EOF;
  if (file != NULL) {
    (void)fclose(file);
  }
  return first == 'e' ? -1 : __real_scl_port_flash_erase(address);
}
