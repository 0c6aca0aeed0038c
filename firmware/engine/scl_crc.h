/* SPDX-License-Identifier: Apache-2.0 */
/* CRC-32 (IEEE 802.3, reflected, as zlib.crc32): continue a checksum over more bytes; begin with 0. */
#ifndef SCL_CRC_H
#define SCL_CRC_H

#include <stdint.h>

uint32_t scl_crc32(uint32_t crc, const void *data, uint32_t size);

#endif
