/* The parts of a pack's decoder that are no plain matrix product, over rows instead of padded sequences.

   A row is one token of one cell. Rows are stored chunk by chunk (the prompts, then each level of the answer trees),
   and by cell within a chunk, so a cell's rows of chunk j are bounds[j][cell] .. bounds[j][cell + 1]. Arrays are
   row-major and dense. Compiled once for each of -DREAL=float and -DREAL=double; memrl/policy/kernels.py says how it
   is called. No sum runs over more than one cell, so a cell's result does not depend on its neighbors. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif
#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#define ALWAYS static inline __attribute__((always_inline))
#define MOST_LAYERS 4 /* of a group: kernels.py declares the same */

typedef int64_t Int;
typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

ALWAYS Vector load(const REAL *x) { return *(const Vector *)x; }
ALWAYS void store(REAL *x, Vector v) { *(Vector *)x = v; }
ALWAYS Vector spread(REAL x) { return x - (Vector){0}; }

typedef REAL Quad __attribute__((vector_size(4 * sizeof(REAL))));

/* Four sums of lanes, whose sum is that of all. */
ALWAYS Quad fold(Vector v) {
    Quad parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
    for (int part = 1; part < LANES / 4; part++) parts[0] += parts[part];
    return parts[0];
}

ALWAYS REAL add_lanes(Vector v) {
    const Quad sums = fold(v);
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* The sums of the lanes of four vectors. */
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
ALWAYS Quad add_lanes_of_4(const Vector v[4]) {
    const Quad a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
    const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
#else
ALWAYS Quad add_lanes_of_4(const Vector v[4]) {
    return (Quad){add_lanes(v[0]), add_lanes(v[1]), add_lanes(v[2]), add_lanes(v[3])};
}
#endif

ALWAYS REAL dot(Int n, const REAL *x, const REAL *y) {
    Vector sum = {0};
    Int i = 0;
    for (; i + LANES <= n; i += LANES) sum += load(x + i) * load(y + i);
    REAL total = add_lanes(sum);
    for (; i < n; i++) total += x[i] * y[i];
    return total;
}

ALWAYS REAL dot_weighted(Int n, const REAL *x, const REAL *weight, const REAL *y) {
    Vector sum = {0};
    Int i = 0;
    for (; i + LANES <= n; i += LANES) sum += load(x + i) * load(weight + i) * load(y + i);
    REAL total = add_lanes(sum);
    for (; i < n; i++) total += x[i] * weight[i] * y[i];
    return total;
}

/* y += a x */
ALWAYS void add_scaled(Int n, REAL a, const REAL *x, REAL *y) {
    const Vector factor = spread(a);
    Int i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + factor * load(x + i));
    for (; i < n; i++) y[i] += a * x[i];
}

/* ---- small matrix products ---- */

/* c (M, V vectors) += a (M, k) b (k, V vectors); a has any strides. M and V are constants where it is inlined. */
ALWAYS void multiply_tile(const int M, const int V, Int k, const REAL *a, Int a_row, Int a_col, const REAL *b,
                          Int b_row, REAL *c, Int c_row) {
    Vector sum[6][2];
#pragma GCC unroll 6
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[i][v] = load(c + i * c_row + v * LANES);
    for (Int p = 0; p < k; p++) {
        Vector right[2];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) right[v] = load(b + p * b_row + v * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const Vector left = spread(a[i * a_row + p * a_col]);
#pragma GCC unroll 3
            for (int v = 0; v < V; v++) sum[i][v] += left * right[v];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) store(c + i * c_row + v * LANES, sum[i][v]);
}

/* c (m, n) += a (m, k) b (k, n); a has any strides, b and c have rows without gaps between columns. */
static void multiply(Int m, Int n, Int k, const REAL *a, Int a_row, Int a_col, const REAL *b, Int b_row, REAL *c,
                     Int c_row) {
#define TILES(M, V)                                                                                                    \
    for (; i + M <= m; i += M)                                                                                         \
        multiply_tile(M, V, k, a + i * a_row, a_row, a_col, b + j, b_row, c + i * c_row + j, c_row)
    Int j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        Int i = 0;
        TILES(6, 2);
        TILES(2, 2);
        TILES(1, 2);
    }
    for (; j + LANES <= n; j += LANES) {
        Int i = 0;
        TILES(4, 1);
        TILES(1, 1);
    }
#undef TILES
    for (; j < n; j++)
        for (Int i = 0; i < m; i++) {
            REAL sum = c[i * c_row + j];
            for (Int p = 0; p < k; p++) sum += a[i * a_row + p * a_col] * b[p * b_row + j];
            c[i * c_row + j] = sum;
        }
}

/* c (M, 4) = scale a (M, k) b (4, k) transposed. */
ALWAYS void dot_tile(const int M, REAL scale, Int k, const REAL *a, Int a_row, const REAL *b, Int b_row, REAL *c,
                     Int c_row) {
    Vector sum[3][4];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = (Vector){0};
    Int p = 0;
    for (; p + LANES <= k; p += LANES) {
        Vector right[4];
        for (int j = 0; j < 4; j++) right[j] = load(b + j * b_row + p);
#pragma GCC unroll 3
        for (int i = 0; i < M; i++) {
            const Vector left = load(a + i * a_row + p);
            for (int j = 0; j < 4; j++) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 3
    for (int i = 0; i < M; i++) {
        Quad total = add_lanes_of_4(sum[i]);
        for (int j = 0; j < 4; j++)
            for (Int q = p; q < k; q++) total[j] += a[i * a_row + q] * b[j * b_row + q];
        total *= scale;
        memcpy(c + i * c_row, &total, sizeof total);
    }
}

/* c (m, n) = scale a (m, k) b (n, k) transposed, all with rows without gaps between columns. */
static void multiply_transposed(REAL scale, Int m, Int n, Int k, const REAL *a, Int a_row, const REAL *b, Int b_row,
                                REAL *c, Int c_row) {
    Int j = 0;
    for (; j + 4 <= n; j += 4) {
        const REAL *right = b + j * b_row;
        Int i = 0;
        for (; i + 3 <= m; i += 3) dot_tile(3, scale, k, a + i * a_row, a_row, right, b_row, c + i * c_row + j, c_row);
        for (; i < m; i++) dot_tile(1, scale, k, a + i * a_row, a_row, right, b_row, c + i * c_row + j, c_row);
    }
    for (; j < n; j++)
        for (Int i = 0; i < m; i++) c[i * c_row + j] = scale * dot(k, a + i * a_row, b + j * b_row);
}

/* ---- adapters ---- */

/* Layers that read the same input, and where each one's adapter lies in a cell's parameters. */
typedef struct {
    Int num_layers, d_in, d_out; /* d_out of all layers together */
    Int widths[MOST_LAYERS];       /* d_out of each */
    Int start_A[MOST_LAYERS];      /* (rank, d_in) */
    Int start_B[MOST_LAYERS];      /* transposed, (rank, d_out) */
} Group;

/* What all adapters of the pack share. */
typedef struct {
    Int cells, rank, num_parameters;
    const Int *ranks;  /* (cells,): true ranks; the rest is padding */
    const REAL *scale; /* (cells,) */
    REAL *parameters;  /* (cells, num_parameters) */
    REAL *gradient;    /* the same */
} Adapters;

/* out += scale B A x for the rows of some chunks; low = scale A x, (rows, layers · rank), is kept for the way back. */
void adapt(const Group *group, const Adapters *pack, Int chunks, const Int *bounds, const REAL *x, REAL *low,
           REAL *out) {
    const Int low_row = group->num_layers * pack->rank;
#pragma omp parallel for schedule(static)
    for (Int cell = 0; cell < pack->cells; cell++) {
        const Int rank = pack->ranks[cell];
        /* Without padding, the A's of all layers are one matrix. */
        const Int blocks = rank == pack->rank ? 1 : group->num_layers, height = rank * group->num_layers / blocks;
        const REAL *parameters = pack->parameters + cell * pack->num_parameters;
        for (Int chunk = 0; chunk < chunks; chunk++) {
            const Int *bound = bounds + chunk * (pack->cells + 1) + cell;
            const Int start = bound[0], rows = bound[1] - bound[0];
            if (!rows) continue;
            for (Int i = 0; i < blocks; i++)
                multiply_transposed(pack->scale[cell], rows, height, group->d_in, x + start * group->d_in, group->d_in,
                                    parameters + group->start_A[i], group->d_in, low + start * low_row + i * pack->rank,
                                    low_row);
            Int column = 0;
            for (Int i = 0; i < group->num_layers; i++) {
                multiply(rows, group->widths[i], rank, low + start * low_row + i * pack->rank, low_row, 1,
                         parameters + group->start_B[i], group->widths[i], out + start * group->d_out + column,
                         group->d_out);
                column += group->widths[i];
            }
        }
    }
}

/* The way back over several chunks: adds to the gradients of A and B, and to grad_x unless it is null. */
void adapt_backward(const Group *group, const Adapters *pack, Int chunks, const Int *bounds, const REAL *x,
                    const REAL *low, const REAL *grad_out, REAL *grad_low, REAL *grad_x) {
    const Int low_row = group->num_layers * pack->rank;
#pragma omp parallel for schedule(static)
    for (Int cell = 0; cell < pack->cells; cell++) {
        const Int rank = pack->ranks[cell];
        /* Without padding, the A's of all layers are one matrix. */
        const Int blocks = rank == pack->rank ? 1 : group->num_layers, height = rank * group->num_layers / blocks;
        const REAL *parameters = pack->parameters + cell * pack->num_parameters;
        REAL *gradient = pack->gradient + cell * pack->num_parameters;
        for (Int chunk = 0; chunk < chunks; chunk++) {
            const Int *bound = bounds + chunk * (pack->cells + 1) + cell;
            const Int start = bound[0], rows = bound[1] - bound[0];
            if (!rows) continue;
            Int column = 0;
            for (Int i = 0; i < group->num_layers; i++) {
                const Int width = group->widths[i], at = start * low_row + i * pack->rank;
                const REAL *part = grad_out + start * group->d_out + column;
                multiply_transposed(pack->scale[cell], rows, rank, width, part, group->d_out,
                                    parameters + group->start_B[i], width, grad_low + at, low_row);
                multiply(rank, width, rows, low + at, 1, low_row, part, group->d_out, gradient + group->start_B[i],
                         width);
                column += width;
            }
            for (Int i = 0; i < blocks; i++) {
                const REAL *part = grad_low + start * low_row + i * pack->rank;
                multiply(height, group->d_in, rows, part, 1, low_row, x + start * group->d_in, group->d_in,
                         gradient + group->start_A[i], group->d_in);
                if (grad_x)
                    multiply(rows, group->d_in, height, part, low_row, 1, parameters + group->start_A[i], group->d_in,
                             grad_x + start * group->d_in, group->d_in);
            }
        }
    }
}

/* Adam's update of every cell, Kingma and Ba, 2015, arXiv 1412.6980, algorithm 1; clears the gradient.
   columns is (cells, 5): 1 - beta1, beta2, 1 - beta2, epsilon and minus the step size, corrected for bias. */
void update_adam(Int cells, Int num_parameters, const REAL *columns, REAL *parameters, REAL *gradient, REAL *moment1,
                 REAL *moment2) {
#pragma omp parallel for schedule(static)
    for (Int cell = 0; cell < cells; cell++) {
        const REAL decay1 = columns[5 * cell], keep2 = columns[5 * cell + 1], decay2 = columns[5 * cell + 2];
        const REAL epsilon = columns[5 * cell + 3], step = columns[5 * cell + 4];
        REAL *restrict p = parameters + cell * num_parameters, *restrict g = gradient + cell * num_parameters;
        REAL *restrict m = moment1 + cell * num_parameters, *restrict v = moment2 + cell * num_parameters;
        for (Int i = 0; i < num_parameters; i++) {
            const REAL slope = g[i];
            m[i] += decay1 * (slope - m[i]);
            v[i] = keep2 * v[i] + decay2 * slope * slope;
            p[i] += step * m[i] / ((REAL)sqrt(v[i]) + epsilon);
            g[i] = 0;
        }
    }
}

/* ---- norms ---- */

/* Root-mean-square norm, Zhang and Sennrich, 2019, arXiv 1910.07467, equation 4: out = x · inverse · weight. Where
   residual is not null, it is added to x first. The weight of a row is that of row % weights. */
void norm(Int rows, Int d, Int weights, const REAL *weight, REAL epsilon, REAL *x, Int x_row, const REAL *residual,
          REAL *out, Int out_row, REAL *inverse) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) {
        const Int whole = row / weights, part = row % weights * d;
        REAL *from = x + whole * x_row + part, *to = out + whole * out_row + part;
        const REAL *scale = weight + part;
        if (residual) add_scaled(d, 1, residual + row * d, from);
        const REAL factor = 1 / (REAL)sqrt(dot(d, from, from) / d + epsilon);
        for (Int i = 0; i < d; i++) to[i] = from[i] * factor * scale[i];
        inverse[row] = factor;
    }
}

/* The gradient of the norm's input is added to grad, or put in place of grad_out where that is the same array. */
void norm_backward(Int rows, Int d, Int weights, const REAL *weight, const REAL *x, const REAL *inverse,
                   const REAL *grad_out, REAL *grad, Int grad_row) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) {
        const Int at = row / weights * grad_row + row % weights * d;
        const REAL *from = x + row * d, *slope = grad_out + at, *scale = weight + row % weights * d;
        REAL *to = grad + at;
        const REAL factor = inverse[row], along = dot_weighted(d, slope, scale, from) * factor * factor / d;
        const REAL keep = grad == grad_out ? 0 : 1;
        for (Int i = 0; i < d; i++) to[i] = keep * to[i] + factor * (slope[i] * scale[i] - along * from[i]);
    }
}

/* ---- attention over a tree ---- */

/* Turns the first `heads` heads of each row by its position: Su et al., 2021, arXiv 2104.09864, equation 34.
   sign is 1, or -1 on the way back. */
void rotate(Int rows, Int heads, Int d_head, Int width, const Int *position, const REAL *cosines, const REAL *sines,
            REAL sign, REAL *x) {
    const Int half = d_head / 2;
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) {
        const REAL *c = cosines + position[row] * d_head, *s = sines + position[row] * d_head;
        for (Int head = 0; head < heads; head++) {
            REAL *restrict low = x + row * width + head * d_head, *restrict high = low + half;
            for (Int i = 0; i < half; i++) {
                const REAL a = low[i], b = high[i];
                low[i] = a * c[i] - sign * b * s[i];
                high[i] = b * c[i + half] + sign * a * s[i + half];
            }
        }
    }
}

typedef struct {
    Int heads, kv_heads, d_head, longest; /* longest: positions that a row can see at most */
    double scaling;
} Attention;

/* Row sees itself and its ancestors; parent is -1 at a prompt's first token. Returns how many. */
ALWAYS Int list_visible(Int row, const Int *parent, Int *visible) {
    Int count = 0;
    for (; row >= 0; row = parent[row]) visible[count++] = row;
    return count;
}

ALWAYS REAL exponential_of_one(REAL x) { return sizeof(REAL) == 4 ? expf(x) : exp(x); }

/* mixed (rows, heads · d_head) for rows first .. last; the logarithm of each softmax's sum, (rows, heads), is kept for
   the way back. */
void attend(const Attention *shape, Int first, Int last, const Int *parent, const REAL *qkv, REAL *log_sum,
            REAL *mixed) {
    const Int d = shape->d_head, share = shape->heads / shape->kv_heads;
    const Int width = (shape->heads + 2 * shape->kv_heads) * d;
#pragma omp parallel for schedule(static)
    for (Int row = first; row < last; row++) {
        Int visible[shape->longest];
        REAL weight[shape->longest];
        const Int count = list_visible(row, parent, visible);
        for (Int head = 0; head < shape->heads; head++) {
            const REAL *query = qkv + row * width + head * d;
            const Int key = (shape->heads + head / share) * d, value = key + shape->kv_heads * d;
            REAL *out = mixed + (row * shape->heads + head) * d, largest = -INFINITY, total = 0;
            for (Int j = 0; j < count; j++) {
                weight[j] = (REAL)shape->scaling * dot(d, query, qkv + visible[j] * width + key);
                largest = weight[j] > largest ? weight[j] : largest;
            }
            for (Int j = 0; j < count; j++) total += weight[j] = exponential_of_one(weight[j] - largest);
            memset(out, 0, d * sizeof(REAL));
            for (Int j = 0; j < count; j++) add_scaled(d, weight[j] / total, qkv + visible[j] * width + value, out);
            log_sum[row * shape->heads + head] = largest + (REAL)log(total);
        }
    }
}

/* Adds to grad_qkv, from grad_mixed, for the rows of some chunks. */
void attend_backward(const Attention *shape, Int cells, Int chunks, const Int *bounds, const Int *parent,
                     const REAL *qkv, const REAL *log_sum, const REAL *grad_mixed, REAL *grad_qkv) {
    const Int d = shape->d_head, share = shape->heads / shape->kv_heads;
    const Int width = (shape->heads + 2 * shape->kv_heads) * d;
#pragma omp parallel for schedule(static)
    for (Int cell = 0; cell < cells; cell++)
        for (Int chunk = 0; chunk < chunks; chunk++)
            for (Int row = bounds[chunk * (cells + 1) + cell]; row < bounds[chunk * (cells + 1) + cell + 1]; row++) {
                Int visible[shape->longest];
                REAL weight[shape->longest], slope[shape->longest];
                const Int count = list_visible(row, parent, visible);
                for (Int head = 0; head < shape->heads; head++) {
                    const Int at = row * shape->heads + head, key = (shape->heads + head / share) * d;
                    const Int value = key + shape->kv_heads * d;
                    const REAL *query = qkv + row * width + head * d, *grad = grad_mixed + at * d;
                    REAL *grad_query = grad_qkv + row * width + head * d, mean = 0;
                    for (Int j = 0; j < count; j++) {
                        const REAL score = (REAL)shape->scaling * dot(d, query, qkv + visible[j] * width + key);
                        weight[j] = exponential_of_one(score - log_sum[at]);
                        slope[j] = dot(d, grad, qkv + visible[j] * width + value);
                        mean += weight[j] * slope[j];
                    }
                    for (Int j = 0; j < count; j++) {
                        const REAL score = weight[j] * (slope[j] - mean) * (REAL)shape->scaling;
                        const Int other = visible[j] * width;
                        add_scaled(d, score, qkv + other + key, grad_query);
                        add_scaled(d, score, query, grad_qkv + other + key);
                        add_scaled(d, weight[j], grad, grad_qkv + other + value);
                    }
                }
            }
}

/* ---- the gate of the MLP ---- */

typedef int32_t Whole __attribute__((vector_size(LANES * 4)));
typedef float Single __attribute__((vector_size(LANES * 4)));

/* value where the mask is all ones, else y */
ALWAYS Single limit(Single y, Whole mask, float value) {
    return (Single)((mask & (Whole)((Single){0} + value)) | (~mask & (Whole)y));
}

/* exp of every lane. For float: 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 2e-7. */
ALWAYS Vector exponential(Vector x) {
    if (sizeof(REAL) == 8) {
        for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
        return x;
    }
    Single y = __builtin_convertvector(x, Single);
    y = limit(limit(y, y > 87.0f, 87.0f), y < -87.0f, -87.0f);
    /* Rounds by truncation: positive for certain once the exponent's bias, 127, is added. */
    const Whole biased = __builtin_convertvector(y * 1.44269504f + 127.5f, Whole);
    const Single whole = __builtin_convertvector(biased - 127, Single);
    const Single r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Single p = r * 1.9875691e-4f + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666666e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return __builtin_convertvector(p * (Single)(biased << 23), Vector);
}

/* gated = silu(gate) · up; gate and up are the halves of a row of 2 d. */
void gate(Int rows, Int d, const REAL *gate_up, REAL *gated) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) {
        const REAL *g = gate_up + 2 * row * d, *up = g + d;
        REAL *out = gated + row * d;
        Int i = 0;
        for (; i + LANES <= d; i += LANES) store(out + i, load(g + i) / (1 + exponential(-load(g + i))) * load(up + i));
        for (; i < d; i++) out[i] = g[i] / (1 + (REAL)exp(-g[i])) * up[i];
    }
}

/* Puts the gradient of gate and up in their place. */
void gate_backward(Int rows, Int d, const REAL *grad_gated, REAL *gate_up) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) {
        REAL *g = gate_up + 2 * row * d, *up = g + d;
        const REAL *slope = grad_gated + row * d;
        Int i = 0;
        for (; i + LANES <= d; i += LANES) {
            const Vector x = load(g + i), sigmoid = 1 / (1 + exponential(-x)), silu = x * sigmoid;
            const Vector grad = load(slope + i);
            store(g + i, grad * load(up + i) * (sigmoid + silu * (1 - sigmoid)));
            store(up + i, grad * silu);
        }
        for (; i < d; i++) {
            const REAL sigmoid = 1 / (1 + (REAL)exp(-g[i])), silu = g[i] * sigmoid;
            g[i] = slope[i] * up[i] * (sigmoid + silu * (1 - sigmoid));
            up[i] = slope[i] * silu;
        }
    }
}
