/* SPDX-License-Identifier: Apache-2.0 */
#include "edge.h"

_Alignas(64) uint64_t fuzz_bss_end[8];
_Alignas(64) uint64_t fuzz_data_end[8] = {1};
