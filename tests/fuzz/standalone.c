/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the files it is given once each, where there is no libFuzzer; says which before it does. */
#include <stdio.h>
#include <stdlib.h>

#include "target.h"

int main(int argc, char **argv) {
  (void)LLVMFuzzerInitialize(&argc, &argv);
  for (int k = 1; k < argc; k++) {
    FILE *file = fopen(argv[k], "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
      perror(argv[k]);
      return 2;
    }
    const size_t size = (size_t)ftell(file);
    uint8_t *data = malloc(size > 0 ? size : 1u); /* of the input's size, so that the sanitizer sees its end */
    rewind(file);
    if (data == NULL || fread(data, 1, size, file) != size) {
      perror(argv[k]);
      return 2;
    }
    (void)fclose(file);
    (void)fprintf(stderr, "%s\n", argv[k]);
    (void)LLVMFuzzerTestOneInput(data, size);
    free(data);
  }
  (void)printf("%d inputs\n", argc - 1);
  return 0;
}
