/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_loss.h"

#include "scl_fixed.h"

/* round(32768 * 2^(-f/256)) */
static const uint16_t exp2_table[256] = {
    /* clang-format off */
    32768, 32679, 32591, 32503, 32415, 32327, 32240, 32153, 32066, 31979, 31893, 31806,
    31720, 31635, 31549, 31464, 31379, 31294, 31209, 31125, 31041, 30957, 30873, 30790,
    30706, 30623, 30541, 30458, 30376, 30293, 30212, 30130, 30048, 29967, 29886, 29805,
    29725, 29644, 29564, 29484, 29405, 29325, 29246, 29167, 29088, 29009, 28931, 28852,
    28774, 28697, 28619, 28542, 28464, 28388, 28311, 28234, 28158, 28082, 28006, 27930,
    27855, 27779, 27704, 27629, 27554, 27480, 27406, 27332, 27258, 27184, 27110, 27037,
    26964, 26891, 26818, 26746, 26674, 26601, 26530, 26458, 26386, 26315, 26244, 26173,
    26102, 26031, 25961, 25891, 25821, 25751, 25681, 25612, 25543, 25474, 25405, 25336,
    25268, 25199, 25131, 25063, 24995, 24928, 24860, 24793, 24726, 24659, 24593, 24526,
    24460, 24394, 24328, 24262, 24196, 24131, 24066, 24001, 23936, 23871, 23806, 23742,
    23678, 23614, 23550, 23486, 23423, 23359, 23296, 23233, 23170, 23108, 23045, 22983,
    22921, 22859, 22797, 22735, 22674, 22613, 22552, 22491, 22430, 22369, 22309, 22248,
    22188, 22128, 22068, 22009, 21949, 21890, 21831, 21772, 21713, 21654, 21595, 21537,
    21479, 21421, 21363, 21305, 21247, 21190, 21133, 21076, 21019, 20962, 20905, 20849,
    20792, 20736, 20680, 20624, 20568, 20513, 20457, 20402, 20347, 20292, 20237, 20182,
    20127, 20073, 20019, 19965, 19911, 19857, 19803, 19750, 19696, 19643, 19590, 19537,
    19484, 19431, 19379, 19326, 19274, 19222, 19170, 19118, 19066, 19015, 18963, 18912,
    18861, 18810, 18759, 18708, 18658, 18607, 18557, 18507, 18457, 18407, 18357, 18308,
    18258, 18209, 18160, 18110, 18061, 18013, 17964, 17915, 17867, 17819, 17770, 17722,
    17674, 17627, 17579, 17531, 17484, 17437, 17390, 17343, 17296, 17249, 17202, 17156,
    17109, 17063, 17017, 16971, 16925, 16879, 16834, 16788, 16743, 16697, 16652, 16607,
    16562, 16518, 16473, 16428,
    /* clang-format on */
};

/* round(256 * log2(1 + f/256)); the last entry is 256, hence 16 bits */
static const uint16_t log2_table[256] = {
    /* clang-format off */
    0, 1, 3, 4, 6, 7, 9, 10, 11, 13, 14, 16,
    17, 18, 20, 21, 22, 24, 25, 26, 28, 29, 30, 32,
    33, 34, 36, 37, 38, 40, 41, 42, 44, 45, 46, 47,
    49, 50, 51, 52, 54, 55, 56, 57, 59, 60, 61, 62,
    63, 65, 66, 67, 68, 69, 71, 72, 73, 74, 75, 77,
    78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
    92, 93, 94, 95, 96, 97, 98, 99, 100, 102, 103, 104,
    105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 116, 117,
    118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129,
    130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141,
    142, 143, 144, 145, 146, 147, 148, 149, 150, 151, 152, 153,
    154, 155, 155, 156, 157, 158, 159, 160, 161, 162, 163, 164,
    165, 166, 167, 168, 169, 169, 170, 171, 172, 173, 174, 175,
    176, 177, 178, 178, 179, 180, 181, 182, 183, 184, 185, 185,
    186, 187, 188, 189, 190, 191, 192, 192, 193, 194, 195, 196,
    197, 198, 198, 199, 200, 201, 202, 203, 203, 204, 205, 206,
    207, 208, 208, 209, 210, 211, 212, 212, 213, 214, 215, 216,
    216, 217, 218, 219, 220, 220, 221, 222, 223, 224, 224, 225,
    226, 227, 228, 228, 229, 230, 231, 231, 232, 233, 234, 234,
    235, 236, 237, 238, 238, 239, 240, 241, 241, 242, 243, 244,
    244, 245, 246, 247, 247, 248, 249, 249, 250, 251, 252, 252,
    253, 254, 255, 255,
    /* clang-format on */
};

/* floor(log2(v)), v > 0. */
static uint32_t log2_floor(uint32_t v) { return 31u - (uint32_t)__builtin_clz(v); }

static int32_t largest(const int16_t *z, const uint8_t *class_task, int32_t task) {
  int32_t m = -32768;
  for (uint32_t c = 0; c < SCL_N_CLASSES; c++) {
    if ((task < 0 || class_task[c] == task) && z[c] > m) {
      m = z[c];
    }
  }
  return m;
}

/* (m - z) * log2(e) with 8 fractional bits. */
static uint32_t exponent(int32_t m, int32_t z) {
  return ((uint32_t)(m - z) * 23637u + (1u << (SCL_FZ + 5))) >> (SCL_FZ + 6);
}

static uint32_t exp_negative(uint32_t t) {
  const uint32_t whole = t >> 8;
  return whole > 15u ? 0u : (uint32_t)exp2_table[t & 255u] >> whole;
}

static uint32_t cross_entropy(uint32_t sum, uint32_t t_label) {
  const uint32_t k = log2_floor(sum);
  const uint32_t l2 = ((k - 15u) << 8) + log2_table[(sum >> (k - 8u)) & 255u] + t_label;
  return (scl_min_u32(l2, 65535u) * 45426u) >> 16;
}

/* Leaves the exponentials in e, as unsigned values and 0 for classes outside of the set; returns their sum. */
static uint32_t exponentials(const int16_t *z, int32_t m, const uint8_t *class_task, int32_t task, int16_t *e) {
  uint32_t sum = 0;
  for (uint32_t c = 0; c < SCL_N_CLASSES; c++) {
    const uint32_t ex = task < 0 || class_task[c] == task ? exp_negative(exponent(m, z[c])) : 0u;
    e[c] = (int16_t)(uint16_t)ex;
    sum += ex;
  }
  return sum;
}

uint32_t scl_loss_cross_entropy(const int16_t *z, uint32_t label, const uint8_t *class_task, int32_t task, int16_t *e) {
  const int32_t m = largest(z, class_task, task);
  const uint32_t sum = exponentials(z, m, class_task, task, e);
  for (uint32_t c = 0; c < SCL_N_CLASSES; c++) {
    const uint32_t ex = (uint16_t)e[c];
    if (ex != 0) { /* else the quotient is 0 too, and most are */
      e[c] = (int16_t)(((ex << 14) + sum / 2u) / sum);
    }
  }
  for (uint32_t c = SCL_N_CLASSES; c < SCL_LOGITS_PAD; c++) {
    e[c] = 0;
  }
  if (task < 0 || class_task[label] == task) {
    e[label] = (int16_t)(e[label] - 16384);
  }
  return cross_entropy(sum, exponent(m, z[label]));
}

static int16_t squared(int32_t z, int32_t stored) {
  const int32_t d = scl_clamp(z - stored, -32767, 32767);
  return scl_sat16(scl_shift(d * SCL_DISTIL_MQ, SCL_FZ + 1));
}

void scl_loss_distil(const int16_t *z, const int16_t *stored, int16_t *e) {
  for (uint32_t c = 0; c < SCL_LOGITS_PAD; c++) {
    e[c] = c < SCL_N_CLASSES ? squared(z[c], stored[c]) : 0;
  }
}

void scl_loss_shared(const int16_t *z, const int16_t *stored, uint32_t label, const uint8_t *class_task, int16_t *e) {
  (void)scl_loss_cross_entropy(z, label, class_task, SCL_ALL_CLASSES, e);
  for (uint32_t c = 0; c < SCL_N_CLASSES; c++) {
    /* at most 2^30: the shares add up to 2^15 */
    e[c] = (int16_t)scl_shift(squared(z[c], stored[c]) * SCL_DISTIL_SHARE + e[c] * (32768 - SCL_DISTIL_SHARE), 15);
  }
}

uint32_t scl_loss_predict(const int16_t *z) {
  uint32_t best = 0;
  for (uint32_t c = 1; c < SCL_N_CLASSES; c++) {
    if (z[c] > z[best]) {
      best = c;
    }
  }
  return best;
}
