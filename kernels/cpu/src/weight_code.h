/* Weights of bfloat16 in 12 bits, without loss.
 *
 * Of the 256 exponents that a bfloat16 can have, the weights of a matrix have some 15. A weight is
 * kept as its sign and mantissa, a byte, and the number of its exponent, 4 bits; the few weights
 * with another exponent are kept whole beside that. A step of CODED_WEIGHTS weights, the pairs of two
 * pairs of inputs in the order of matrix.h, takes CODED_STEP_BYTES:
 *
 *     [2][64] signs and mantissas      [64] numbers, those of the first pair in the lower 4 bits
 *
 * In each, weights lie so that interleaving with their upper bytes puts them into their places.
 * Only where a register holds 64 bytes: elsewhere weights stay as they are.
 */
#ifndef SPLITFUSE_WEIGHT_CODE_H
#define SPLITFUSE_WEIGHT_CODE_H

#include "simd.h"

enum {
    HAS_WEIGHT_CODE = LANES == 16,
    NUM_EXPONENTS = 16,
    CODED_WEIGHTS = 128,
    CODED_STEP_BYTES = CODED_WEIGHTS * 3 / 2,
};

/* The exponent of each number; that of zero has number 0. */
typedef struct {
    uint8_t exponents[NUM_EXPONENTS];
} weight_code;

/* A weight whose exponent has no number; its code says zero. */
typedef struct {
    int32_t step;
    uint16_t place; /* in the step: [2][BLOCK_COLUMNS][2], as in matrix.h */
    bf16 weight;
} rare_weight;

/* Those of some blocks, one block after another and in order. */
typedef struct {
    rare_weight *weights;
    int64_t count, capacity;
    int64_t *ends; /* of each block */
} rare_weights;

/* A code for weights [num_rows, width]; made from a part of the rows. */
weight_code choose_weight_code(const bf16 *weights, int64_t num_rows, int64_t width);

/* Make room for the rare weights of so many blocks, of which there are none yet. Returns 0, or -1
 * without memory. */
int32_t clear_rare_weights(rare_weights *rare, int32_t num_blocks);

void free_rare_weights(rare_weights *rare);

/* Encode `num_steps` steps of a block, `weights` [num_steps][CODED_WEIGHTS]. Blocks come in their
 * order. Returns 0, or -1 without memory. */
int32_t encode_block(const weight_code *code, const bf16 *weights, int32_t num_steps, char *to,
                     rare_weights *rare, int32_t block);

#if LANES == 16

/* The upper and lower bytes of bfloat16 with the exponent of each number, and nothing else. */
typedef struct {
    __m512i upper, lower;
} decoder;

/* Two pairs of vectors: the weights of a step. */
typedef struct {
    uvec vectors[4];
} decoded_step;

INLINE decoder make_decoder(const weight_code *code) {
    __m128i exponents = _mm_loadu_si128((const __m128i *)code->exponents);
    __m128i half = _mm_and_si128(_mm_srli_epi16(exponents, 1), _mm_set1_epi8(0x7f));
    __m128i last_bit = _mm_slli_epi16(_mm_and_si128(exponents, _mm_set1_epi8(1)), 7);
    return (decoder){_mm512_broadcast_i32x4(half), _mm512_broadcast_i32x4(last_bit)};
}

/* Truth tables of _mm512_ternarylogic_epi32, from those of its operands. */
enum { FIRST = 0xf0, SECOND = 0xcc, THIRD = 0xaa, ALL = 0xff };

/* The weights of a pair of inputs, from their signs and mantissas and their numbers. */
INLINE void decode_pair(decoder d, __m512i low, __m512i numbers, uvec *vectors) {
    const __m512i mantissa = _mm512_set1_epi8(0x7f);
    __m512i upper = _mm512_ternarylogic_epi32(low, mantissa, _mm512_shuffle_epi8(d.upper, numbers),
                                              (FIRST & (ALL ^ SECOND)) | THIRD);
    __m512i lower = _mm512_ternarylogic_epi32(low, mantissa, _mm512_shuffle_epi8(d.lower, numbers),
                                              (FIRST & SECOND) | THIRD);
    vectors[0] = (uvec)_mm512_unpacklo_epi8(lower, upper);
    vectors[1] = (uvec)_mm512_unpackhi_epi8(lower, upper);
}

INLINE decoded_step decode_step(decoder d, const char *step) {
    const __m512i four_bits = _mm512_set1_epi8(0x0f);
    __m512i numbers = _mm512_loadu_si512(step + CODED_WEIGHTS);
    decoded_step s;
    decode_pair(d, _mm512_loadu_si512(step), _mm512_and_si512(numbers, four_bits), s.vectors);
    numbers = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), four_bits);
    decode_pair(d, _mm512_loadu_si512(step + 64), numbers, s.vectors + 2);
    return s;
}

/* The pair of inputs that a rare weight belongs to, with all other weights zero. */
typedef struct {
    int32_t input; /* the first of the block's */
    uvec vectors[2];
} rare_pair;

INLINE rare_pair find_rare_pair(const rare_weight *rare) {
    int32_t place = rare->place;
    uint64_t column = (uint64_t)1 << place % 64 / 2;
    __m512i weight = _mm512_set1_epi32((int32_t)rare->weight << 16 * (place % 2));
    return (rare_pair){
        .input = 4 * rare->step + place / 64 * 2,
        .vectors = {(uvec)_mm512_maskz_mov_epi32((__mmask16)column, weight),
                    (uvec)_mm512_maskz_mov_epi32((__mmask16)(column >> 16), weight)},
    };
}

#endif

#endif
