/* SPDX-License-Identifier: Apache-2.0 */
/* Every command handler: requests with valid checksums to a board that is new. */
#include <string.h>

#include "ops.h"
#include "target.h"

int LLVMFuzzerInitialize(int *count, char ***arguments) {
  (void)count;
  (void)arguments;
  fuzz_remember();
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_input_t in = {data, (uint32_t)size};
  memset(fuzz_flash(), 0xFF, SCL_FLASH_SIZE);
  fuzz_start();
  fuzz_operate(&in, 64);
  fuzz_recover();
  return 0;
}
