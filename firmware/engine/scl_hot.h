/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SCL_HOT stands before a function that a training step spends its time in.
 * Where board.toml says code_in_ram, start-up copies it to RAM and it runs from
 * there.  Only the section has a name; the compiler's code stays the same.
 */
#ifndef SCL_HOT_H
#define SCL_HOT_H

#ifdef __arm__
#define SCL_HOT __attribute__((section(".hot")))
#else
#define SCL_HOT
#endif

#endif
