/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power that fails inside flash operation number SCL_CUT_AT (environment): the
 * operation is done in part, then the process ends.  Linked with
 * --wrap=scl_port_flash_program --wrap=scl_port_flash_erase.
 */
#include <stdlib.h>
#include <unistd.h>

#include "scl_board.h"
#include "scl_port.h"

int32_t __real_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size);
int32_t __real_scl_port_flash_erase(uint32_t address);
int32_t __wrap_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size);
int32_t __wrap_scl_port_flash_erase(uint32_t address);

static unsigned long operations;

static int now(void) {
  const char *limit = getenv("SCL_CUT_AT");
  return limit != NULL && ++operations == strtoul(limit, NULL, 10);
}

/* Odd operations: the first half is written; even ones: all but the last unit's bytes are, or nothing is. */
int32_t __wrap_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  if (now()) {
    const uint32_t units = size / SCL_FLASH_PROGRAM_UNIT;
    const uint32_t done = operations % 2u ? units / 2u : units - 1u;
    if (done > 0) {
      (void)__real_scl_port_flash_program(address, data, done * SCL_FLASH_PROGRAM_UNIT);
    }
    _exit(9);
  }
  return __real_scl_port_flash_program(address, data, size);
}

/* Odd operations: the header is gone and the rest is still there; even ones: the other way round. */
int32_t __wrap_scl_port_flash_erase(uint32_t address) {
  if (now()) {
    static uint8_t old[SCL_FLASH_SECTOR];
    const uint32_t half = SCL_FLASH_SECTOR / 2u;
    const uint32_t kept = operations % 2u ? half : 0u;
    (void)scl_port_flash_read(address, old, SCL_FLASH_SECTOR);
    (void)__real_scl_port_flash_erase(address);
    (void)__real_scl_port_flash_program(address + kept, old + kept, half);
    _exit(9);
  }
  return __real_scl_port_flash_erase(address);
}
