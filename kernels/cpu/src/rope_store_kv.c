#include <math.h>

#include "kv_cache.h"
#include "pointwise.h"

int64_t keys_per_block_elements(const kv_layer *kv) {
    return (int64_t)kv->num_kv_heads * kv->tiles_per_block * KEYS_PER_TILE * kv->key_dim;
}

int64_t values_per_block_elements(const kv_layer *kv) {
    return (int64_t)kv->num_kv_heads * kv->tiles_per_block * KEYS_PER_TILE * kv->value_dim;
}

/* ── turning ───────────────────────────────────────────────────────────────────────────────── */

/* Angles are rounded to float32 before their cosine is taken, as in the reference. */
void rope_angles(const int32_t *positions, int32_t begin, int32_t end, const float *frequencies,
                 int32_t num_frequencies, float scale, float *out) {
    for (int32_t token = begin; token < end; token++) {
        float *cosines = out + (int64_t)token * 2 * num_frequencies;
        float *sines = cosines + num_frequencies;
        for (int32_t i = 0; i < num_frequencies; i++) {
            float angle = (float)positions[token] * frequencies[i];
            cosines[i] = scale * cosf(angle);
            sines[i] = scale * sinf(angle);
        }
    }
}

/* The first `count` of LANES elements, the others zero. Reads no further: what follows the last
 * head may be the end of the row. */
INLINE vec load_some(const char *row, int32_t dtype, int32_t column, int32_t count) {
    if (count >= LANES) return load_element(row, dtype, column);
    if (dtype == SF_BFLOAT16) {
        bf16 lanes[LANES] = {0};
        memcpy(lanes, (const bf16 *)row + column, (size_t)count * sizeof *lanes);
        return load_bf16(lanes);
    }
    float lanes[LANES] = {0};
    memcpy(lanes, (const float *)row + column, (size_t)count * sizeof *lanes);
    return load(lanes);
}

/* Dimensions `first` + i and `first` + num_frequencies + i of a row turn together. */
INLINE void turn_head(char *row, int32_t dtype, int32_t first, const float *angles,
                      int32_t num_frequencies) {
    const char *cosines = (const char *)angles, *sines = (const char *)(angles + num_frequencies);
    int32_t second = first + num_frequencies;
    for (int32_t i = 0; i < num_frequencies; i += LANES) {
        int32_t count = num_frequencies - i;
        vec cosine = load_some(cosines, SF_FLOAT32, i, count);
        vec sine = load_some(sines, SF_FLOAT32, i, count);
        vec x = load_some(row, dtype, first + i, count);
        vec y = load_some(row, dtype, second + i, count);
        store_element(row, dtype, first + i, x * cosine - y * sine, count);
        store_element(row, dtype, second + i, y * cosine + x * sine, count);
    }
}

static void turn_heads(char *row, int32_t dtype, int32_t num_heads, int32_t head_dim,
                       const float *angles, int32_t num_frequencies) {
    for (int32_t head = 0; head < num_heads; head++) {
        if (dtype == SF_BFLOAT16) {
            turn_head(row, SF_BFLOAT16, head * head_dim, angles, num_frequencies);
        } else {
            turn_head(row, SF_FLOAT32, head * head_dim, angles, num_frequencies);
        }
    }
}

/* ── storing ───────────────────────────────────────────────────────────────────────────────── */

/* Pairs of a key lie KEYS_PER_TILE pairs apart; the second of the last is padding if the number of
 * dimensions is odd. */
static void store_key_bf16(bf16 *tile, int32_t place, const bf16 *key, int32_t head_dim) {
    bf16 *pair = tile + 2 * place;
    for (int32_t d = 0; d + 1 < head_dim; d += 2, pair += 2 * KEYS_PER_TILE) {
        memcpy(pair, key + d, 2 * sizeof *key);
    }
    if (head_dim % 2 != 0) *pair = key[head_dim - 1];
}

static void store_value_bf16(bf16 *tile, int32_t place, const bf16 *value, int32_t head_dim,
                             int32_t value_dim) {
    bf16 *pairs = tile + place / 2 * 2 * value_dim + place % 2;
    for (int32_t d = 0; d < head_dim; d++) pairs[2 * d] = value[d];
}

static void store_key_float32(float *tile, int32_t place, const float *key, int32_t head_dim) {
    for (int32_t d = 0; d < head_dim; d++) tile[d * KEYS_PER_TILE + place] = key[d];
}

static void store_head(const kv_layer *kv, int64_t tile, int32_t place, const char *key,
                       const char *value) {
    char *keys = key_tile(kv, tile), *values = value_tile(kv, tile);
    if (kv->dtype == SF_BFLOAT16) {
        store_key_bf16((bf16 *)keys, place, (const bf16 *)key, kv->head_dim);
        store_value_bf16((bf16 *)values, place, (const bf16 *)value, kv->head_dim, kv->value_dim);
    } else {
        store_key_float32((float *)keys, place, (const float *)key, kv->head_dim);
        memcpy((float *)values + place * kv->value_dim, value,
               (size_t)kv->head_dim * sizeof(float));
    }
}

/* `keys` and `values`: those of all KV heads, side by side. */
static void store_token(const kv_layer *kv, int32_t slot, const char *keys, const char *values) {
    int32_t block = slot / kv->block_size, place = slot % kv->block_size;
    int64_t head_bytes = kv->head_dim * kv_element_bytes(kv);
    for (int32_t head = 0; head < kv->num_kv_heads; head++) {
        int64_t tile = tile_number(kv, block, head, place / KEYS_PER_TILE);
        store_head(kv, tile, place % KEYS_PER_TILE, keys + head * head_bytes,
                   values + head * head_bytes);
    }
}

void rope_store_kv(const sf_op *op, const sf_batch *batch, const sf_buffer *qkv,
                   const float *angles, const kv_layer *kv, row_range tokens) {
    int64_t head_bytes = op->head_dim * kv_element_bytes(kv);
    for (int32_t token = tokens.begin; token < tokens.end; token++) {
        char *row = row_of(qkv, token);
        char *keys = row + op->num_heads * head_bytes;
        if (angles != NULL) {
            turn_heads(row, qkv->dtype, op->num_heads + op->num_kv_heads, op->head_dim,
                       angles + (int64_t)token * 2 * op->num_frequencies, op->num_frequencies);
        }
        store_token(kv, batch->slot_mapping[token], keys, keys + op->num_kv_heads * head_bytes);
    }
}
