/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worn sectors, given by remainder: in every 31st from 2 on the first unit of the sector stays erased, in every 31st from 11
 * on erase reports an error, in every 31st from 21 on the last quarter of the sector stays erased.  Linked with
 * --wrap=scl_port_flash_program --wrap=scl_port_flash_erase.
 */
#include "scl_board.h"
#include "scl_port.h"

int32_t __real_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size);
int32_t __real_scl_port_flash_erase(uint32_t address);
int32_t __wrap_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size);
int32_t __wrap_scl_port_flash_erase(uint32_t address);

int32_t __wrap_scl_port_flash_program(uint32_t address, const uint8_t *data, uint32_t size) {
  const uint32_t sector = address / SCL_FLASH_SECTOR, offset = address % SCL_FLASH_SECTOR;
  const int no_header = sector % 31u == 2u && offset == 0;
  const int no_end = sector % 31u == 21u && offset + size > SCL_FLASH_SECTOR / 4u * 3u;
  return no_header || no_end ? 0 : __real_scl_port_flash_program(address, data, size);
}

int32_t __wrap_scl_port_flash_erase(uint32_t address) {
  return address / SCL_FLASH_SECTOR % 31u == 11u ? -1 : __real_scl_port_flash_erase(address);
}
