#include "weight_code.h"

#include <stdlib.h>

enum {
    EXPONENTS = 256, /* of bfloat16 */
    RARE = 0xff,     /* instead of a number */
    SAMPLED_ROWS = 256,
    PAIR_WEIGHTS = CODED_WEIGHTS / 2,
};

static int exponent_of(bf16 weight) { return weight >> 7 & 0xff; }

/* ── choosing ──────────────────────────────────────────────────────────────────────────────── */

static int most_frequent(const int64_t counts[EXPONENTS]) {
    int best = 0;
    for (int e = 1; e < EXPONENTS; e++) {
        if (counts[e] > counts[best]) best = e;
    }
    return best;
}

weight_code choose_weight_code(const bf16 *weights, int64_t num_rows, int64_t width) {
    int64_t counts[EXPONENTS] = {0};
    for (int64_t row = 0; row < num_rows; row += num_rows / SAMPLED_ROWS + 1) {
        for (int64_t i = 0; i < width; i++) counts[exponent_of(weights[row * width + i])]++;
    }
    weight_code code = {{0}}; /* zero is padding, too */
    for (int number = 1; number < NUM_EXPONENTS; number++) {
        counts[code.exponents[number - 1]] = -1;
        code.exponents[number] = (uint8_t)most_frequent(counts);
    }
    return code;
}

/* ── rare weights ──────────────────────────────────────────────────────────────────────────── */

int32_t clear_rare_weights(rare_weights *rare, int32_t num_blocks) {
    free_rare_weights(rare);
    rare->ends = calloc((size_t)num_blocks + 1, sizeof *rare->ends);
    return rare->ends == NULL ? -1 : 0;
}

void free_rare_weights(rare_weights *rare) {
    free(rare->weights);
    free(rare->ends);
    *rare = (rare_weights){0};
}

static int32_t add_rare(rare_weights *rare, rare_weight one) {
    if (rare->count == rare->capacity) {
        int64_t capacity = 2 * rare->capacity + 64;
        rare_weight *grown = realloc(rare->weights, (size_t)capacity * sizeof *grown);
        if (grown == NULL) return -1;
        rare->weights = grown;
        rare->capacity = capacity;
    }
    rare->weights[rare->count++] = one;
    return 0;
}

/* ── encoding ──────────────────────────────────────────────────────────────────────────────── */

/* Where the bytes of weight `i` of a pair of inputs lie. Interleaving takes 8 bytes of each 16 for the
 * first vector, and 8 for the second. */
static int place_of(int i) {
    int vector = i / 32, word = i % 32;
    return word / 8 * 16 + vector * 8 + word % 8;
}

static void find_numbers(const weight_code *code, uint8_t numbers[EXPONENTS]) {
    memset(numbers, RARE, EXPONENTS);
    for (int n = 0; n < NUM_EXPONENTS; n++) numbers[code->exponents[n]] = (uint8_t)n;
}

int32_t encode_block(const weight_code *code, const bf16 *weights, int32_t num_steps, char *to,
                     rare_weights *rare, int32_t block) {
    uint8_t numbers[EXPONENTS];
    find_numbers(code, numbers);
    for (int32_t step = 0; step < num_steps; step++, to += CODED_STEP_BYTES) {
        uint8_t *low = (uint8_t *)to, *of_pairs = (uint8_t *)to + CODED_WEIGHTS;
        memset(of_pairs, 0, PAIR_WEIGHTS);
        for (int i = 0; i < CODED_WEIGHTS; i++) {
            bf16 weight = *weights++;
            uint8_t number = numbers[exponent_of(weight)];
            int pair = i / PAIR_WEIGHTS, place = place_of(i % PAIR_WEIGHTS);
            if (number == RARE) {
                rare_weight one = {step, (uint16_t)i, weight};
                if (add_rare(rare, one) != 0) return -1;
                number = weight = 0;
            }
            low[pair * PAIR_WEIGHTS + place] = (uint8_t)((weight >> 8 & 0x80) | (weight & 0x7f));
            of_pairs[place] |= (uint8_t)(number << 4 * pair);
        }
    }
    rare->ends[block] = rare->count;
    return 0;
}
