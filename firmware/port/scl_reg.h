/* SPDX-License-Identifier: Apache-2.0 */
/* One way to touch a hardware register, so that every port reads alike. */
#ifndef SCL_REG_H
#define SCL_REG_H

#include <stdint.h>

#define SCL_REG32(address) (*(volatile uint32_t *)(uintptr_t)(address))
#define SCL_REG8(address) (*(volatile uint8_t *)(uintptr_t)(address))

#endif
