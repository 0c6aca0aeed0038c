/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serial NOR flash with the command set that all vendors share (JEDEC JESD216
 * basic commands, 3 address bytes).  A port gives the bus, this gives
 * scl_port_flash_*'s bodies.
 */
#ifndef SCL_SPI_NOR_H
#define SCL_SPI_NOR_H

#include <stdint.h>

/* Facts of the part besides its geometry, which is in scl_board.h. */
typedef struct {
  uint8_t erase_opcode; /* erases SCL_FLASH_SECTOR bytes */
  uint8_t error_bits;   /* of the status register; 0 where the part has none */
} scl_spi_nor_t;

/*
 * The bus, written by the port.  One transaction selects the chip, moves
 * exactly `total` bytes by any number of write and read calls and deselects
 * it.  `total` is at most SCL_SPI_NOR_TRANSACTION.
 */
#define SCL_SPI_NOR_TRANSACTION 4096U
void scl_spi_begin(uint32_t total);
void scl_spi_write(const uint8_t *data, uint32_t size);
void scl_spi_read(uint8_t *data, uint32_t size);
void scl_spi_end(void);

/* Clears the block protection that some parts (SST25) power up with. */
int32_t scl_spi_nor_unlock(const scl_spi_nor_t *part);

/* As scl_port_flash_*: addresses count from the partition's beginning. */
int32_t scl_spi_nor_read(uint32_t address, uint8_t *data, uint32_t size);
int32_t scl_spi_nor_program(const scl_spi_nor_t *part, uint32_t address, const uint8_t *data, uint32_t size);
int32_t scl_spi_nor_erase(const scl_spi_nor_t *part, uint32_t address);

#endif
