/* SPDX-License-Identifier: Apache-2.0 */
/* The types that every module shares. */
#ifndef SCL_TYPES_H
#define SCL_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include "scl_config.h"
#include "scl_hot.h"
#include "scl_wire.h"

#if SCL_INPUT_SIGNED
typedef int8_t scl_input_t;
#else
typedef uint8_t scl_input_t;
#endif

/* The 8-bit input of the network that learns: what a frozen prefix makes of a sample, without one the sample itself. */
#if SCL_LATENT_SIGNED
typedef int8_t scl_latent_t;
#else
typedef uint8_t scl_latent_t;
#endif

/* What a record in flash holds. */
#if SCL_LATENT_STORED
typedef scl_latent_t scl_stored_t;
#else
typedef scl_input_t scl_stored_t;
#endif

/* Number of an entry in a panel (docs/spec/numerics.md). */
#if SCL_POSITION_BYTES == 2
typedef uint16_t scl_pos_t;
#else
typedef uint32_t scl_pos_t;
#endif

/* Addresses in the journal are granules; see docs/spec/flash-format.md. */
typedef uint16_t scl_address_t;
#define SCL_ADDRESS_NONE 0xFFFFu

/* Kernels are specialised by the compiler: their constants come from the generated call graph. */
#ifndef SCL_INLINE /* a build that counts coverage has one copy of each */
#define SCL_INLINE static inline __attribute__((always_inline))
#endif

/* Inner loops run over a handful of weights: the loop's own instructions would cost as much as the work. */
#define SCL_UNROLL _Pragma("GCC unroll 4")
#define SCL_UNROLL_ALL _Pragma("GCC unroll 8")

/*
 * Hides the value from gcc's optimiser and keeps it in its own register; without this gcc folds an array's offset in a
 * larger one into every index, or recomputes an address or a factor instead of keeping it.
 */
#define SCL_KEEP(value) __asm__("" : "+r"(value))

/* Like SCL_KEEP, but in one of the registers that Thumb compares with 0 and branches on in one instruction. */
#ifdef __thumb__
#define SCL_KEEP_LOW(value) __asm__("" : "+l"(value))
#else
#define SCL_KEEP_LOW(value) SCL_KEEP(value)
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "state regions are sent and stored as they lie in memory: little-endian only"
#endif

#endif
