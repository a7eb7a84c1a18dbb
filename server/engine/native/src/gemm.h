// Linear layers: weights packed once at load, activations as they are, results handed to an epilogue while in cache.
//
// A weight [n, k] is packed into panels of 16 output columns: bf16 as [k/2][16][2], so that one 64-byte row holds the pairs
// that vdpbf16ps and AMX multiply, and float as [k][16]. A result is accumulated over k in one order in one register,
// whatever the number of rows: a row's result is bitwise the same alone and in any batch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "simd.h"
#include "tiles.h"

namespace waybill {

constexpr int kPanel = 16;      // output columns of a panel: one vector of floats
constexpr int kDepth = 32;      // k is padded to a multiple: one AMX tile of bf16
constexpr int kRowBlock = 32;   // rows that a block of results holds at most
constexpr int kColumns = 64;    // columns that a block of results holds at most
constexpr size_t kItemBytes = 384 << 10;   // weights of a work item: every block of rows meets them in the second-level cache

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

struct Release {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t(64)); }
};

template <class T>
using Buffer = std::unique_ptr<T[], Release>;

// Zeroed and aligned to a cache line.
template <class T>
Buffer<T> make_buffer(size_t count) {
  void* p = ::operator new[](std::max<size_t>(count, 1) * sizeof(T), std::align_val_t(64));
  std::memset(p, 0, count * sizeof(T));
  return Buffer<T>(static_cast<T*>(p));
}

// A packed weight. `starts` splits its pairs of panels into work items: large ones first, small ones last, so that threads
// finish together.
template <class T>
class Linear {
 public:
  Linear() = default;

  // Packs `weight` [n, k], row by row as `row(i)` says which of its rows comes i-th. `threads` take the work items in turn.
  template <class RowOf>
  Linear(int n, int k, int threads, RowOf row) : n_(n), k_(k), depth_(round_up(k, kDepth)), threads_(threads) {
    const int panels = round_up(n, 2 * kPanel) / kPanel;
    packed_ = make_buffer<T>(static_cast<size_t>(panels) * depth_ * kPanel);
    for (int i = 0; i < n; i++) {
      const T* source = row(i);
      if (source == nullptr) continue;
      T* panel = packed_.get() + static_cast<size_t>(i / kPanel) * depth_ * kPanel;
      for (int j = 0; j < k; j++) panel[place(j, i % kPanel)] = source[j];
    }
    const int pairs = panels / 2, target = 12 * threads;
    const int fitting = static_cast<int>(kItemBytes / (sizeof(T) * 2 * kPanel * depth_));
    const int large = std::max(2, std::min(pairs / target, fitting) / 2 * 2), small_from = pairs - pairs / 5;
    for (int at = 0; at < pairs; at += at + large <= small_from ? large : 1) starts_.push_back(at);
    starts_.push_back(pairs);
  }

  int rows() const { return n_; }
  int depth() const { return depth_; }
  int items() const { return static_cast<int>(starts_.size()) - 1; }
  int first_panel(int item) const { return 2 * starts_[item]; }
  int end_panel(int item) const { return 2 * starts_[item + 1]; }
  // The panels that a thread most likely meets after an item: others take those between.
  const T* after(int item) const { return panel(first_panel(std::min(item + threads_, items() - 1))); }
  const T* panel(int index) const { return packed_.get() + static_cast<size_t>(index) * depth_ * kPanel; }

 private:
  static size_t place(int j, int column) {
    if constexpr (sizeof(T) == 2) return (static_cast<size_t>(j / 2) * kPanel + column) * 2 + j % 2;
    else return static_cast<size_t>(j) * kPanel + column;
  }

  int n_ = 0, k_ = 0, depth_ = 0, threads_ = 1;
  Buffer<T> packed_;
  std::vector<int> starts_;
};

// ---------------------------------------------------------------------------------------------- blocks of results
// A block multiplies `rows` rows of activations with `panels` panels and leaves float results in out[row][kColumns].

// While a block of the first rows multiplies, each turn fetches its share of the pair of panels that comes next.

#if defined(__AVX512BF16__)
template <int R, int P>
inline void multiply_rows(const bf16* a, int lda, const bf16* w, size_t panel_step, int depth, float* out, const Ahead<bf16>& ahead) {
  f32x16 sum[R][P];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) sum[r][p] = f32x16{};
  // A pointer for three rows: twelve would not fit into the registers for addresses.
  constexpr int kGroups = (R + 2) / 3;
  const bf16* rows[kGroups];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; g++) rows[g] = a + static_cast<size_t>(3 * g) * lda;
  const size_t stride = lda;
  for (int k = 0; k < depth / 2; k++) {
    __m512bh column[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
      column[p] = (__m512bh)_mm512_loadu_si512(w + p * panel_step + static_cast<size_t>(k) * 2 * kPanel);
      ahead.fetch(p, k);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, rows[r / 3] + r % 3 * stride, sizeof pair);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      for (int p = 0; p < P; p++) sum[r][p] = (f32x16)_mm512_dpbf16_ps((__m512)sum[r][p], column[p], both);
    }
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; g++) {
      rows[g] += 2;
      asm("" : "+r"(rows[g]));
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(out + r * kColumns + p * kPanel, sum[r][p]);
}
#else
template <int R, int P>
inline void multiply_rows(const float* a, int lda, const bf16* w, size_t panel_step, int depth, float* out, const Ahead<bf16>& ahead) {
  f32x16 sum[R][P];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) sum[r][p] = f32x16{};
  for (int k = 0; k < depth; k += 2) {
    const bf16* pairs = w + static_cast<size_t>(k) * kPanel;
    f32x16 column[P];
    for (int p = 0; p < P; p++) {
      column[p] = load_of_pairs<0>(pairs + p * panel_step);
      ahead.fetch(p, k / 2);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const f32x16 x = broadcast(a[static_cast<size_t>(r) * lda + k]);
      for (int p = 0; p < P; p++) sum[r][p] = sum[r][p] + x * column[p];
    }
    forget_memory();
    for (int p = 0; p < P; p++) column[p] = load_of_pairs<1>(pairs + p * panel_step);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const f32x16 x = broadcast(a[static_cast<size_t>(r) * lda + k + 1]);
      for (int p = 0; p < P; p++) sum[r][p] = sum[r][p] + x * column[p];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(out + r * kColumns + p * kPanel, sum[r][p]);
}
#endif

// Sums 32 products at a time before it adds them up: a float's rounding error then grows with the number of sums.
template <int R, int P>
inline void multiply_rows(const float* a, int lda, const float* w, size_t panel_step, int depth, float* out, const Ahead<float>& ahead) {
  f32x16 total[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) total[r][p] = f32x16{};
  for (int k = 0; k < depth; k += kDepth) {
    f32x16 sum[R][P];
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) sum[r][p] = f32x16{};
    for (int j = k; j < k + kDepth; j++) {
      f32x16 column[P];
      for (int p = 0; p < P; p++) {
        column[p] = load(w + p * panel_step + static_cast<size_t>(j) * kPanel);
        ahead.fetch(p, j);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const f32x16 x = broadcast(a[static_cast<size_t>(r) * lda + j]);
        for (int p = 0; p < P; p++) sum[r][p] = sum[r][p] + x * column[p];
      }
    }
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) total[r][p] = total[r][p] + sum[r][p];
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(out + r * kColumns + p * kPanel, total[r][p]);
}

// Rows and panels of which the results stay in registers. Of 32, 24 hold results of bf16: the more rows, the less often weights come
// from the second-level cache. Floats are summed up in two steps, which takes as many registers again.
#if defined(__AVX512F__)
template <class T> constexpr int kRegisterRows = sizeof(T) == 2 ? 12 : 8;
constexpr int kRegisterPanels = 2;
#elif defined(__AVX2__)
template <class T> constexpr int kRegisterRows = 5;   // 10 of 16: a vector of 16 floats takes two
constexpr int kRegisterPanels = 1;
#else
template <class T> constexpr int kRegisterRows = 2;
constexpr int kRegisterPanels = 2;
#endif

template <class T, int R = kRegisterRows<T>>
inline void multiply_pair(const Factor<T>* a, int lda, int rows, const T* w, size_t panel_step, int depth, float* out,
                          const Ahead<T>& ahead) {
  if constexpr (R > 0) {
    constexpr int kPanels = 2 * R <= kRegisterRows<T> ? 2 : kRegisterPanels;   // few rows leave room for both
    if (rows == R)
      for (int p = 0; p < 2; p += kPanels)
        multiply_rows<R, kPanels>(a, lda, w + p * panel_step, panel_step, depth, out + p * kPanel, ahead.of(p));
    else multiply_pair<T, R - 1>(a, lda, rows, w, panel_step, depth, out, ahead);
  }
}

// With `fetches`, the panels that follow are fetched, behind the last those at `after`. `between` is called a few times for every
// block: work that fits into the gaps of this one. Without tiles there are none.
template <class T, class Between>
inline void multiply_block(const Factor<T>* a, int lda, int rows, const T* w, size_t panel_step, int panels, int depth, float* out,
                           bool fetches, const T* after, Between&&) {
  const int turns = (rows + kRegisterRows<T> - 1) / kRegisterRows<T>;
  const size_t share = fetches ? panel_step / turns : 0, steps = sizeof(T) == 2 ? depth / 2 : depth;
  const size_t step = (share + steps - 1) / steps;
  for (int p = 0; p < panels; p += 2)
    for (int turn = 0; turn < turns; turn++) {
      const int r = rows * turn / turns, height = rows * (turn + 1) / turns - r;   // no turn with much less to do
      const T *pair = w + p * panel_step, *next = p + 2 < panels ? pair + 2 * panel_step : after;
      const Ahead<T> ahead{fetches ? next + turn * share : pair, panel_step, step};
      multiply_pair<T>(a + static_cast<size_t>(r) * lda, lda, height, pair, panel_step, depth, out + r * kColumns + p * kPanel, ahead);
    }
}

#if defined(__AMX_BF16__)
// Up to 32 rows with two panels.
template <class Between>
inline void tiles_2x2(const bf16* a, int lda, int upper, const bf16* w, size_t panel_step, int depth, float* out, Between&& between) {
  const bf16 *below = a + static_cast<size_t>(upper) * lda, *right = w + panel_step;
  const int stride = lda * 2;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int k = 0; k < depth; k += 32) {
    _tile_loadd(6, w + static_cast<size_t>(k) * kPanel, 64);
    _tile_loadd(4, a + k, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + static_cast<size_t>(k) * kPanel, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, below + k, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    between();
  }
  float* lower_out = out + upper * kColumns;
  _tile_stored(0, out, kColumns * 4);
  _tile_stored(1, out + kPanel, kColumns * 4);
  _tile_stored(2, lower_out, kColumns * 4);
  _tile_stored(3, lower_out + kPanel, kColumns * 4);
}

// Up to 16 rows with four panels.
template <class Between>
inline void tiles_1x4(const bf16* a, int lda, const bf16* w, size_t panel_step, int depth, float* out, Between&& between) {
  const bf16 *w1 = w + panel_step, *w2 = w1 + panel_step, *w3 = w2 + panel_step;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int k = 0; k < depth; k += 32) {
    const size_t at = static_cast<size_t>(k) * kPanel;
    _tile_loadd(4, a + k, lda * 2);
    _tile_loadd(6, w + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w1 + at, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, w2 + at, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, w3 + at, 64);
    _tile_dpbf16ps(3, 4, 7);
    between();
  }
  _tile_stored(0, out, kColumns * 4);
  _tile_stored(1, out + kPanel, kColumns * 4);
  _tile_stored(2, out + 2 * kPanel, kColumns * 4);
  _tile_stored(3, out + 3 * kPanel, kColumns * 4);
}

// Up to 16 rows with two panels.
template <class Between>
inline void tiles_1x2(const bf16* a, int lda, const bf16* w, size_t panel_step, int depth, float* out, Between&& between) {
  const bf16* right = w + panel_step;
  _tile_zero(0); _tile_zero(1);
  for (int k = 0; k < depth; k += 32) {
    const size_t at = static_cast<size_t>(k) * kPanel;
    _tile_loadd(4, a + k, lda * 2);
    _tile_loadd(6, w + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + at, 64);
    _tile_dpbf16ps(1, 4, 7);
    between();
  }
  _tile_stored(0, out, kColumns * 4);
  _tile_stored(1, out + kPanel, kColumns * 4);
}

template <class Between>
inline void multiply_block(const bf16* a, int lda, int rows, const bf16* w, size_t panel_step, int panels, int depth, float* out,
                           bool, const bf16*, Between&& between) {
  settle();
  if (rows > 16) {
    for (int p = 0; p < panels; p += 2) tiles_2x2(a, lda, 16, w + p * panel_step, panel_step, depth, out + p * kPanel, between);
  } else if (panels == 4) {
    tiles_1x4(a, lda, w, panel_step, depth, out, between);
  } else {
    tiles_1x2(a, lda, w, panel_step, depth, out, between);
  }
}
#endif

// Rows of a finished block that still go to `finish`: while tiles multiply the next block, the vector units are idle.
template <class Finish>
struct Pending {
  Finish* finish;
  float* values = nullptr;
  int rows = 0, row = 0, column = 0, columns = 0;

  void operator()() {
    if (rows == 0) return;
    (*finish)(row, column, columns, values);
    rows--, row++, values += kColumns;
  }
};

// Multiplies `rows` rows of `a` (row stride `lda`, `depth()` elements readable, zero beyond k) with the panels of one work
// item, and calls finish(row, first column, columns, values) for every row of every block; `values` may be changed.
template <class T, class Finish>
void run_linear(const Linear<T>& weight, const Factor<T>* a, int lda, int rows, int item, Finish&& finish) {
  alignas(64) float blocks[2][kRowBlock * kColumns];
  const size_t panel_step = static_cast<size_t>(weight.depth()) * kPanel;
  const int end = weight.end_panel(item);
  Pending<std::remove_reference_t<Finish>> pending{&finish};
  int turn = 0;
  for (int r = 0; r < rows; r += kRowBlock) {
    const int height = std::min(kRowBlock, rows - r);
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2) configure_tiles(std::min(16, height), height > 16 ? height - 16 : height);
#endif
    for (int p = weight.first_panel(item); p < end; p += kColumns / kPanel, turn = 1 - turn) {
      const int panels = std::min(kColumns / kPanel, end - p);
      multiply_block(a + static_cast<size_t>(r) * lda, lda, height, weight.panel(p), panel_step, panels, weight.depth(),
                     blocks[turn], r == 0, p + panels < end ? weight.panel(p + panels) : weight.after(item), pending);
      while (pending.rows > 0) pending();
      const int column = p * kPanel, columns = std::min(panels * kPanel, weight.rows() - column);
      if (columns > 0) pending = {&finish, blocks[turn], height, r, column, columns};
    }
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2) release_tiles();
#endif
  }
  while (pending.rows > 0) pending();
}

}  // namespace waybill
