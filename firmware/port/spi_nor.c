/* SPDX-License-Identifier: Apache-2.0 */
#include "spi_nor.h"

#include <stdbool.h>
#include <stdint.h>

#include "scl_board.h"

enum { OP_WRITE_STATUS = 0x01, OP_PAGE_PROGRAM = 0x02, OP_READ = 0x03, OP_READ_STATUS = 0x05, OP_WRITE_ENABLE = 0x06 };

#define STATUS_WIP 0x01U
#define HEADER_BYTES 4U

/* Page program wraps around inside a page of this many bytes. */
#define PAGE_BYTES 256U

/* The slowest operation of the supported parts, a 64 KiB erase, takes up to
 * 2 s; a status poll takes at least 1 us on the bus. */
#define BUSY_POLLS 4000000U

enum { ERROR_RANGE = -1, ERROR_BUSY = -2, ERROR_PART = -3 };

static bool outside(uint32_t address, uint32_t size) {
  return address > SCL_FLASH_SIZE || size > SCL_FLASH_SIZE - address;
}

static void begin_at(uint8_t opcode, uint32_t address, uint32_t data_bytes) {
  const uint32_t device = SCL_FLASH_OFFSET + address;
  const uint8_t header[HEADER_BYTES] = {opcode, (uint8_t)(device >> 16), (uint8_t)(device >> 8), (uint8_t)device};
  scl_spi_begin(HEADER_BYTES + data_bytes);
  scl_spi_write(header, HEADER_BYTES);
}

static void write_enable(void) {
  const uint8_t opcode = OP_WRITE_ENABLE;
  scl_spi_begin(1);
  scl_spi_write(&opcode, 1);
  scl_spi_end();
}

static int32_t wait_until_idle(const scl_spi_nor_t *part) {
  const uint8_t opcode = OP_READ_STATUS;
  for (uint32_t i = 0; i < BUSY_POLLS; ++i) {
    uint8_t status;
    scl_spi_begin(2);
    scl_spi_write(&opcode, 1);
    scl_spi_read(&status, 1);
    scl_spi_end();
    if (!(status & STATUS_WIP)) {
      return (status & part->error_bits) ? ERROR_PART : 0;
    }
  }
  return ERROR_BUSY;
}

int32_t scl_spi_nor_unlock(const scl_spi_nor_t *part) {
  const uint8_t command[2] = {OP_WRITE_STATUS, 0};
  write_enable();
  scl_spi_begin(sizeof command);
  scl_spi_write(command, sizeof command);
  scl_spi_end();
  return wait_until_idle(part);
}

int32_t scl_spi_nor_read(uint32_t address, uint8_t *data, uint32_t size) {
  if (outside(address, size)) {
    return ERROR_RANGE;
  }
  while (size > 0) {
    const uint32_t most = SCL_SPI_NOR_TRANSACTION - HEADER_BYTES;
    const uint32_t part_size = size < most ? size : most;
    begin_at(OP_READ, address, part_size);
    scl_spi_read(data, part_size);
    scl_spi_end();
    address += part_size;
    data += part_size;
    size -= part_size;
  }
  return 0;
}

int32_t scl_spi_nor_program(const scl_spi_nor_t *part, uint32_t address, const uint8_t *data, uint32_t size) {
  if (outside(address, size)) {
    return ERROR_RANGE;
  }
  while (size > 0) {
    const uint32_t room = PAGE_BYTES - (SCL_FLASH_OFFSET + address) % PAGE_BYTES;
    const uint32_t part_size = size < room ? size : room;
    write_enable();
    begin_at(OP_PAGE_PROGRAM, address, part_size);
    scl_spi_write(data, part_size);
    scl_spi_end();
    const int32_t error = wait_until_idle(part);
    if (error) {
      return error;
    }
    address += part_size;
    data += part_size;
    size -= part_size;
  }
  return 0;
}

int32_t scl_spi_nor_erase(const scl_spi_nor_t *part, uint32_t address) {
  if (outside(address, SCL_FLASH_SECTOR) || address % SCL_FLASH_SECTOR != 0) {
    return ERROR_RANGE;
  }
  write_enable();
  begin_at(part->erase_opcode, address, 0);
  scl_spi_end();
  return wait_until_idle(part);
}
