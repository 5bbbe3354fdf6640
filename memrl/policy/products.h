/* Vectors of numbers, and the matrix products of kernels.c. Numbers are of type REAL: float, or double. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif
#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#define ALWAYS static inline __attribute__((always_inline))

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

#ifdef __has_builtin
#define HAS_SHUFFLE __has_builtin(__builtin_shufflevector)
#else
#define HAS_SHUFFLE 0
#endif

/* The sums of the lanes of four vectors. */
ALWAYS Quad add_lanes_of_4(const Vector v[4]) {
#if HAS_SHUFFLE
    const Quad a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
    const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#else
    return (Quad){add_lanes(v[0]), add_lanes(v[1]), add_lanes(v[2]), add_lanes(v[3])};
#endif
}

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

/* c (M, V vectors) += a (M, k) b (k, V vectors), or = where `fresh`; a has any strides. M, V and fresh are constants
   where it is inlined. */
ALWAYS void multiply_tile(const int M, const int V, const int fresh, Int k, const REAL *a, Int a_row, Int a_col,
                          const REAL *b, Int b_row, REAL *c, Int c_row) {
    Vector sum[6][2];
#pragma GCC unroll 6
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[i][v] = fresh ? (Vector){0} : load(c + i * c_row + v * LANES);
    for (Int p = 0; p < k; p++) {
        Vector right[2];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) right[v] = load(b + p * b_row + v * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const Vector left = spread(a[i * a_row + p * a_col]);
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) sum[i][v] += left * right[v];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) store(c + i * c_row + v * LANES, sum[i][v]);
}

/* The same for any number of rows m. */
ALWAYS void multiply_rows(const int V, const int fresh, Int m, Int k, const REAL *a, Int a_row, Int a_col,
                          const REAL *b, Int b_row, REAL *c, Int c_row) {
#define TILE(M) multiply_tile(M, V, fresh, k, a, a_row, a_col, b, b_row, c, c_row)
    for (; m >= 6; m -= 6, a += 6 * a_row, c += 6 * c_row) TILE(6);
    switch (m) {
    case 5: TILE(5); break;
    case 4: TILE(4); break;
    case 3: TILE(3); break;
    case 2: TILE(2); break;
    case 1: TILE(1); break;
    }
#undef TILE
}

/* c (m, n) += a (m, k) b (k, n); a has any strides, b and c have rows without gaps between columns. */
static void multiply(Int m, Int n, Int k, const REAL *a, Int a_row, Int a_col, const REAL *b, Int b_row, REAL *c,
                     Int c_row) {
    Int j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) multiply_rows(2, 0, m, k, a, a_row, a_col, b + j, b_row, c + j, c_row);
    for (; j + LANES <= n; j += LANES) multiply_rows(1, 0, m, k, a, a_row, a_col, b + j, b_row, c + j, c_row);
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

/* ---- products with base weights ---- */

#define PANEL (2 * LANES)
Int panel_columns(void) { return PANEL; }

/* Some rows that lie one after another. */
typedef struct {
    Int start, count;
} Rows;

/* Columns j .. j + columns of c (rows, n) = those rows of a (rows, k) times a panel (k, PANEL). */
static void multiply_panel(const Rows *rows, Int chunks, Int n, Int k, const REAL *a, const REAL *panel, REAL *c, Int j,
                           Int columns) {
    for (Int chunk = 0; chunk < chunks; chunk++) {
        const REAL *left = a + rows[chunk].start * k;
        REAL *out = c + rows[chunk].start * n + j, rest[PANEL];
        if (columns == PANEL) multiply_rows(2, 1, rows[chunk].count, k, left, k, 1, panel, PANEL, out, n);
        for (Int i = 0; columns < PANEL && i < rows[chunk].count; i++) {
            multiply_tile(1, 2, 1, k, left + i * k, k, 1, panel, PANEL, rest, PANEL);
            memcpy(out + i * n, rest, columns * sizeof(REAL));
        }
    }
}

/* c = a times base weights (k, n), at some rows. The weights are stored as panels of so many columns, filled up with
   zeros: (panels, k, PANEL). */
static void multiply_base(const Rows *rows, Int chunks, Int n, Int k, const REAL *a, const REAL *panels, REAL *c) {
    for (Int j = 0; j < n; j += PANEL, panels += k * PANEL)
        multiply_panel(rows, chunks, n, k, a, panels, c, j, n - j < PANEL ? n - j : PANEL);
}

/* The integers that choose lanes of a vector. */
typedef __typeof__((Vector){0} > (Vector){0}) Lanes;

#ifdef __has_builtin
#define HAS_CHOICE __has_builtin(__builtin_shuffle)
#else
#define HAS_CHOICE 0
#endif

/* to = from transposed, (LANES, LANES) of rows PANEL wide. Each round riffles the rows' two halves. */
ALWAYS void transpose(const REAL *from, REAL *to) {
#if HAS_CHOICE
    Vector rows[LANES], riffled[LANES];
    Lanes low, high;
    for (int i = 0; i < LANES; i++) high[i] = (low[i] = i / 2 + i % 2 * LANES) + LANES / 2;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = load(from + i * PANEL);
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            riffled[2 * i] = __builtin_shuffle(rows[i], rows[i + LANES / 2], low);
            riffled[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) rows[i] = riffled[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(to + i * PANEL, rows[i]);
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) to[i * PANEL + j] = from[j * PANEL + i];
#endif
}

/* Columns j .. j + columns of base weights (n, k) transposed, as a panel (k, PANEL). */
static void turn_panel(Int n, Int k, const REAL *panels, Int j, Int columns, REAL *panel) {
    for (Int p = 0; p < k; p += PANEL, panels += n * PANEL, panel += PANEL * PANEL) {
        const REAL *block = panels + j * PANEL;
        if (columns == PANEL && k - p >= PANEL)
            for (int i = 0; i < PANEL; i += LANES)
                for (int c = 0; c < PANEL; c += LANES) transpose(block + i * PANEL + c, panel + c * PANEL + i);
        else
            for (Int c = 0; c < PANEL && c < k - p; c++)
                for (Int i = 0; i < columns; i++) panel[c * PANEL + i] = block[i * PANEL + c];
    }
}

/* c (rows, n) = a (rows, k) times base weights (n, k) transposed, which are stored as for multiply_base. Each panel is
   put together in `room`, (k, PANEL), which stays in the cache for all rows. */
static void multiply_base_transposed(const Rows *rows, Int chunks, Int n, Int k, const REAL *a, const REAL *panels,
                                     REAL *c, REAL *room) {
    for (Int j = 0; j < n; j += PANEL) {
        const Int columns = n - j < PANEL ? n - j : PANEL;
        turn_panel(n, k, panels, j, columns, room);
        multiply_panel(rows, chunks, n, k, a, room, c, j, columns);
    }
}
