/* The model as foreign calls, one to read a market and one per cycle: what Python hands over.
 *
 * Formulas are those of hrm/model.py and hrm/parity.py: post-norm blocks without biases, with
 * attention where there is more than one token. Everything is allocated by the caller.
 *
 * Layout. Every width is padded with zeros to a multiple of PANEL. A matrix [outputs, inputs] is
 * stored in panels of PANEL outputs; within a panel the inputs follow one another, and for each of
 * them (for each GROUP of them in 8 bits) the PANEL outputs. So a product reads the weights once,
 * from front to back, and needs no sum across lanes:
 *
 *   HRM_F32, HRM_F16   [outputs / PANEL][inputs][PANEL]
 *   HRM_I8             [outputs / PANEL][inputs / GROUP][PANEL][GROUP], w = code * scales[output]
 *
 * GROUP is 2 with AVX2 and 4 with AVX-512: as many inputs as one instruction multiplies. The inputs
 * are rounded to whole numbers up to `peak`, which is chosen so that no sum of products leaves 32
 * bits: 127 * peak * inputs < 2^31. Such sums are exact in any order, float sums run over the inputs
 * in order, and every other operation is the same in 16 lanes on each instruction set; so a row has
 * the same bits alone, in a batch, with AVX2 and with AVX-512.
 */
#ifndef HRM_CORE_H
#define HRM_CORE_H

#include <stddef.h>
#include <stdint.h>

#define HRM_ABI 4 /* raised with any change of this file; hrm/native_library.py has it too */
#define PANEL 64

enum hrm_format { HRM_F32 = 0, HRM_F16 = 1, HRM_I8 = 2 };

struct hrm_matrix {
    const void *panels;  /* 64-byte aligned */
    const float *scales; /* [outputs], HRM_I8 only */
    const int32_t *offsets; /* [outputs], HRM_I8 only: -2^15 times the sum of the codes, modulo 2^32 */
    int32_t outputs;     /* padded */
    int32_t inputs;      /* padded */
    int32_t format;
    int32_t peak; /* HRM_I8 only, at most 32767 */
};

struct hrm_block {
    struct hrm_matrix query_key_value; /* three times [width] outputs, heads side by side */
    struct hrm_matrix out;
    struct hrm_matrix gate_up; /* gate in the first half of the outputs, up in the second */
    struct hrm_matrix down;
};

struct hrm_module {
    const struct hrm_block *blocks;
    const float *cosines; /* [tokens, width / heads], as hrm.rotary has them */
    const float *sines;
    int64_t *spent_ns; /* [n_blocks, 2]: time in attention and in the feed-forward of each block is
                          added here; NULL: nothing is timed */
    int32_t n_blocks;
    int32_t width; /* as the model has it */
    int32_t heads; /* 0: without attention, for one token */
    int32_t tokens;
    float epsilon; /* of rms_norm */
    struct hrm_matrix from_other; /* reads the other module's state: from_low, from_high */
};

struct hrm_core {
    struct hrm_module high;
    struct hrm_module low;
    int32_t timesteps; /* updates of L per update of H */
};

/* States and encodings are dense [rows, tokens, width]; scratch is 64-byte aligned and of the size
 * that hrm_scratch_bytes says for the widest module. Outputs may not overlap inputs. */
struct hrm_step {
    const float *encoded; /* as wide as high */
    const float *high;
    const float *low;
    float *next_high;
    float *next_low;
    float *ratios; /* [2, rows]: residuals of H, then of L, as hrm_residual has them */
    void *scratch;
    int32_t rows;
};

struct hrm_reading {
    const float *tokens;          /* [rows, tokens, width] */
    const unsigned char *present; /* [rows, tokens]: 0 where a token may not be read */
    float *read;                  /* [rows, tokens, width] */
    void *scratch;
    int32_t rows;
};

/* As hrm/native_library.py mirrors them. */
_Static_assert(sizeof(struct hrm_matrix) == 40, "hrm_matrix");
_Static_assert(sizeof(struct hrm_block) == 160, "hrm_block");
_Static_assert(sizeof(struct hrm_module) == 96, "hrm_module");
_Static_assert(sizeof(struct hrm_core) == 200, "hrm_core");
_Static_assert(sizeof(struct hrm_step) == 64, "hrm_step");
_Static_assert(sizeof(struct hrm_reading) == 40, "hrm_reading");

#endif
