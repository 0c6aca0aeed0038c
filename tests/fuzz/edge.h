/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the engine's variables begin and end: edge_begin.c is linked before the
 * engine's files and edge_end.c behind them.  board.c checks that this holds.
 */
#ifndef FUZZ_EDGE_H
#define FUZZ_EDGE_H

#include <stdint.h>

extern uint64_t fuzz_bss_begin[8], fuzz_bss_end[8], fuzz_data_begin[8], fuzz_data_end[8];

#endif
