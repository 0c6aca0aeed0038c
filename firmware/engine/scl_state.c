/* SPDX-License-Identifier: Apache-2.0 */
#include "scl_state.h"

#include <string.h>

#include "scl_bytes.h"
#include "scl_crc.h"
#include "scl_net.h"
#include "scl_records.h"
#if SCL_N_MASKED > 0
#include "scl_panel.h"
#endif

#define SCALARS SCL_WIRE_SCALARS_SIZE
#define SLOT_BYTES SCL_WIRE_REPLAY_SLOT_SIZE
#define FIRST_NET_REGION 16u

scl_learner_t scl_learner;

/* One visitor serves digest, size, save and load: the order of the state's parts stands once, in visit_net and visit_all. */
typedef scl_status_t (*visit_fn)(void *context, void *data, uint32_t size);

static void pack(uint8_t p[SCALARS]) {
  const scl_learner_t *l = &scl_learner;
#define PUT_U8(member) *p++ = l->member;
#define PUT_U16(member) scl_put_u16(p, l->member), p += 2;
#define PUT_U32(member) scl_put_u32(p, l->member), p += 4;
#define PUT_ZERO() *p++ = 0;
  SCL_WIRE_SCALARS(PUT_U8, PUT_U16, PUT_U32, PUT_ZERO)
}

/* Returns whether all padding is 0. */
static int unpack(const uint8_t p[SCALARS]) {
  scl_learner_t *l = &scl_learner;
  int good = 1;
#define GET_U8(member) l->member = *p++;
#define GET_U16(member) l->member = scl_get_u16(p), p += 2;
#define GET_U32(member) l->member = scl_get_u32(p), p += 4;
#define GET_ZERO() good = *p++ == 0 && good;
  SCL_WIRE_SCALARS(GET_U8, GET_U16, GET_U32, GET_ZERO)
  return good;
}

/* The lists of a panel come after their size, which a damaged snapshot can have wrong. */
static scl_status_t visit_net(visit_fn visit, void *context) {
  for (uint32_t r = 0; r < SCL_N_REGIONS; r++) {
    const scl_region_t *region = &scl_regions[r];
    if (region->entries != NULL && *region->entries > region->most) {
      return SCL_ERR_STORE;
    }
    const scl_status_t status = visit(context, region->data, scl_region_size(region));
    if (status != SCL_OK) {
      return status;
    }
  }
  return SCL_OK;
}

/* Table and slots; sizes come from the learner, so the scalars are visited (and unpacked) first. */
static scl_status_t visit_tables(visit_fn visit, void *context) {
  const uint32_t n = scl_learner.n;
  const uint32_t filled = scl_learner.filled;
  const struct {
    void *data;
    uint32_t size;
  } parts[] = {{scl_table.id, n * 2u},
               {scl_table.score, n},
               {scl_table.address, n * 2u},
               {scl_slots.sample, filled * 2u},
               {scl_slots.logits, filled * 2u}};
  for (uint32_t k = 0; k < sizeof parts / sizeof parts[0]; k++) {
    const scl_status_t status = visit(context, parts[k].data, parts[k].size);
    if (status != SCL_OK) {
      return status;
    }
  }
  return SCL_OK;
}

/* Everything but the scalars; the network only where it is wanted. */
static __attribute__((noinline)) scl_status_t visit_all(visit_fn visit, void *context, int network) {
  scl_status_t status = visit(context, scl_learner.class_task, SCL_N_CLASSES);
  if (status == SCL_OK) {
    status = visit_tables(visit, context);
  }
  if (status == SCL_OK && network) {
    status = visit_net(visit, context);
  }
  for (const scl_region_t *r = scl_transient_regions; r->data != NULL && status == SCL_OK; r++) {
    status = visit(context, r->data, r->size);
  }
  return status;
}

void scl_state_reset(void) {
  memset(&scl_learner, 0, sizeof scl_learner);
  scl_learner.choices = SCL_SEED;
  scl_learner.rounding = ~SCL_SEED;
  memset(scl_learner.class_task, (int)SCL_NO_TASK, SCL_N_CLASSES);
  scl_net_reset();
}

static scl_status_t add_crc(void *context, void *data, uint32_t size) {
  uint32_t *crc = context;
  *crc = scl_crc32(*crc, data, size);
  return SCL_OK;
}

/* id, task, label and the two checksums of a replay slot, as dumped. */
static scl_status_t slot_bytes(uint32_t slot, uint8_t p[SLOT_BYTES]) {
  uint8_t head[SCL_RECORD_HEAD];
  scl_status_t status = scl_record_head(scl_slots.sample[slot], head);
  memcpy(p, head + 4, 4);
  memcpy(p + 4, head, 4);
  memset(p + 8, 0, 4);
  if (status == SCL_OK && SCL_METHOD == SCL_METHOD_DERPP) {
    status = scl_record_head(scl_slots.logits[slot], head);
    memcpy(p + 8, head, 4);
  }
  return status;
}

scl_status_t scl_state_digest(uint32_t *digest) {
  uint8_t scalars[SCALARS];
  uint32_t crc;
  pack(scalars);
  crc = scl_crc32(0, scalars, SCALARS);
  crc = scl_crc32(crc, scl_learner.class_task, SCL_N_CLASSES);
  scl_status_t status = visit_net(add_crc, &crc);
  crc = scl_crc32(crc, scl_table.id, scl_learner.n * 2u);
  crc = scl_crc32(crc, scl_table.score, scl_learner.n);
  for (uint32_t s = 0; s < scl_learner.filled && status == SCL_OK; s++) {
    uint8_t slot[SLOT_BYTES];
    status = slot_bytes(s, slot);
    crc = scl_crc32(crc, slot + 4, 8);
  }
  *digest = crc;
  return status;
}

/* Continues the state digest over what it leaves out: addresses, what a task under way needs, its samples' checksums. */
static scl_status_t add_the_rest(uint32_t *crc) {
  scl_status_t status = visit_all(add_crc, crc, 0);
  for (uint32_t k = 0; k < scl_record_resident() && status == SCL_OK; k++) {
    uint8_t head[SCL_RECORD_HEAD];
    status = scl_record_head(scl_table.address[k], head);
    *crc = scl_crc32(*crc, head, 4);
  }
  return status;
}

#if SCL_KEYED
static scl_status_t add_tag(void *context, void *data, uint32_t size) {
  scl_blake2s_add(context, data, size);
  return SCL_OK;
}

static void make_tag(uint32_t number, scl_state_end_t *end) {
  uint8_t head[4u + SCALARS];
  scl_blake2s_t s;
  scl_put_u32(head, number);
  pack(head + 4);
  scl_tag_begin(&s, SCL_TAG_SNAPSHOT);
  scl_blake2s_add(&s, head, sizeof head);
  (void)visit_all(add_tag, &s, 1);
  scl_blake2s_add(&s, end->bytes, 4);
  scl_blake2s_end(&s, end->bytes + 4);
}
#else
static void make_tag(uint32_t number, scl_state_end_t *end) { (void)number, (void)end; }
#endif

scl_status_t scl_state_end(uint32_t number, scl_state_end_t *end) {
  uint32_t crc;
  scl_status_t status = scl_state_digest(&crc);
  if (status == SCL_OK) {
    status = add_the_rest(&crc);
  }
  scl_put_u32(end->bytes, crc);
  make_tag(number, end);
  return status;
}

static scl_status_t add_size(void *context, void *data, uint32_t size) {
  (void)data;
  *(uint32_t *)context += size;
  return SCL_OK;
}

static scl_status_t write_part(void *context, void *data, uint32_t size) {
  (void)context;
  return scl_journal_snapshot_write(data, size);
}

static scl_status_t read_part(void *context, void *data, uint32_t size) {
  (void)context;
  return scl_journal_restore_read(data, size);
}

uint32_t scl_state_size(void) {
  uint32_t size = SCALARS + sizeof(scl_state_end_t);
  (void)visit_all(add_size, &size, 1);
  return size;
}

scl_status_t scl_state_save(const scl_state_end_t *end) {
  uint8_t scalars[SCALARS];
  pack(scalars);
  scl_status_t status = scl_journal_snapshot_write(scalars, SCALARS);
  if (status == SCL_OK) {
    status = visit_all(write_part, NULL, 1);
  }
  return status != SCL_OK ? status : scl_journal_snapshot_write(end->bytes, sizeof end->bytes);
}

/*
 * A snapshot that passes its checksums can still be one that no learner of this
 * model wrote.  Whatever it holds, nothing is ever read or written beyond a
 * table, a panel or a layer.
 */
static int learner_holds(void) {
  const scl_learner_t *l = &scl_learner;
  const int at_work = l->phase == SCL_PHASE_FILLING || l->phase == SCL_PHASE_TRAINING;
  return l->n <= SCL_TABLE && l->n <= l->n_start && l->filled <= SCL_CAPACITY && l->phase <= SCL_PHASE_TRAINED &&
         l->mode <= SCL_MODE_STREAMED && l->received <= l->n_start && l->pos <= l->n && l->shuffled <= 1u &&
         l->grown <= 1u && (l->pos == 0 || l->shuffled) && (l->phase != SCL_PHASE_FILLING || l->received < l->n) &&
         (!at_work || (l->pos < l->n && l->epoch < SCL_EPOCHS));
}

/* Of the present task, whose classes the loss sums over. */
static int has_class(void) {
  for (uint32_t c = 0; c < SCL_N_CLASSES; c++) {
    if (scl_learner.class_task[c] == scl_learner.task) {
      return 1;
    }
  }
  return 0;
}

#if SCL_N_MASKED > 0
/* Entries from .. end-1 of a line ascend, and none of them is in `used` yet. */
static int run_holds(const scl_panel_t *p, uint32_t from, uint32_t end, scl_places_t *used) {
  for (uint32_t k = from; k < end; k++) {
    const uint32_t place = p->index[k];
    if (place >= p->places || scl_is_marked(used, place) || (k > from && place < p->index[k - 1u])) {
      return 0;
    }
    scl_mark(used, place);
  }
  return 1;
}

static int panel_holds(const scl_panel_t *p, uint32_t lines) {
  uint32_t learning = 0; /* entries of the gradient mask, for which a batch has sums */
  for (uint32_t l = 0; l < lines; l++) {
    scl_places_t used = {{0}};
    if (p->start[l] > p->split[l] || p->split[l] > p->start[l + 1] || p->start[l + 1] > p->start[lines] ||
        !run_holds(p, p->start[l], p->split[l], &used) || !run_holds(p, p->split[l], p->start[l + 1], &used)) {
      return 0;
    }
    learning += (uint32_t)p->split[l] - p->start[l];
  }
  const uint32_t entries = p->nnz + (scl_learner.grown ? p->grow_inter : 0u);
  return p->start[0] == 0 && p->start[lines] == entries && learning <= p->grad + p->grow_inter;
}

static int panels_hold(void) {
  for (const scl_masked_t *m = scl_masked; m->panels != NULL; m++) {
    for (uint32_t p = 0; p < m->n_panels; p++) {
      if (!panel_holds(&m->panels[p], m->lines)) {
        return 0;
      }
    }
  }
  return 1;
}
#else
static int panels_hold(void) { return 1; }
#endif

scl_status_t scl_state_load(scl_state_end_t *end) {
  uint8_t scalars[SCALARS];
  scl_status_t status = scl_journal_restore_begin();
  if (status == SCL_OK) {
    status = scl_journal_restore_read(scalars, SCALARS);
  }
  if (status == SCL_OK) {
    const int good = unpack(scalars);
    status = good && learner_holds() ? visit_all(read_part, NULL, 1) : SCL_ERR_STORE;
  }
  if (status == SCL_OK) {
    status = scl_journal_restore_read(end->bytes, sizeof end->bytes);
  }
  if (status == SCL_OK) {
    status = scl_journal_restore_end();
  }
  const int holds =
      status == SCL_OK && panels_hold() && scl_record_holds() && (scl_learner.phase == SCL_PHASE_IDLE || has_class());
  return status != SCL_OK || holds ? status : SCL_ERR_STORE;
}

static scl_status_t dump_memory(const void *from, uint32_t available, uint32_t offset, uint8_t *data, uint32_t size) {
  if (offset > available || size > available - offset) {
    return SCL_ERR_RANGE;
  }
  memcpy(data, (const uint8_t *)from + offset, size);
  return SCL_OK;
}

static scl_status_t dump_scalars(uint32_t offset, uint8_t *data, uint32_t size) {
  uint8_t bytes[SCALARS + SCL_N_CLASSES];
  pack(bytes);
  memcpy(bytes + SCALARS, scl_learner.class_task, SCL_N_CLASSES);
  return dump_memory(bytes, sizeof bytes, offset, data, size);
}

static scl_status_t dump_slots(uint32_t offset, uint8_t *data, uint32_t size) {
  const uint32_t available = scl_learner.filled * SLOT_BYTES;
  if (offset > available || size > available - offset) {
    return SCL_ERR_RANGE;
  }
  uint8_t slot[SLOT_BYTES];
  for (uint32_t done = 0; done < size; done++) {
    const uint32_t at = offset + done;
    if (done == 0 || at % SLOT_BYTES == 0) {
      const scl_status_t status = slot_bytes(at / SLOT_BYTES, slot);
      if (status != SCL_OK) {
        return status;
      }
    }
    data[done] = slot[at % SLOT_BYTES];
  }
  return SCL_OK;
}

scl_status_t scl_state_dump(uint32_t region, uint32_t offset, uint8_t *data, uint32_t size) {
  switch (region) {
    case 0:
      return dump_scalars(offset, data, size);
    case 1:
      return dump_memory(scl_table.id, scl_learner.n * 2u, offset, data, size);
    case 2:
      return dump_memory(scl_table.score, scl_learner.n, offset, data, size);
    case 3:
      return dump_slots(offset, data, size);
    default:
      break;
  }
  if (region < FIRST_NET_REGION || region - FIRST_NET_REGION >= SCL_N_REGIONS) {
    return SCL_ERR_RANGE;
  }
  const scl_region_t *r = &scl_regions[region - FIRST_NET_REGION];
  return dump_memory(r->data, scl_region_size(r), offset, data, size);
}
