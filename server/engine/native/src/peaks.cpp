// The likeliest token of each row of logits among those that a mask allows, and whether the row is finite: one pass.
#include <algorithm>
#include <limits>

#include "pool.h"
#include "simd.h"

namespace {

using waybill::f32x16;

constexpr int kTokens = 256;   // between two looks at the largest
constexpr float kNever = -std::numeric_limits<float>::infinity();

inline bool allows(const uint8_t* mask, int token) { return (mask[token / 8] >> (token % 8) & 1) != 0; }

void find(const float* logits, const uint8_t* mask, int vocab, int32_t* id, uint8_t* finite) {
  f32x16 rest = {};
  float bad = 0.f, best = kNever;
  int found = 0;
  for (int block = 0; block < vocab; block += kTokens) {
    const int end = std::min(vocab, block + kTokens);
    f32x16 top = waybill::broadcast(kNever);
    float last = kNever;
    int j = block;
    for (; j + 16 <= end; j += 16) {
      const f32x16 v = waybill::load(logits + j);
      uint16_t bits;
      std::memcpy(&bits, mask + j / 8, sizeof bits);
      rest = rest + (v - v);   // not zero where a value is not finite
      top = waybill::vmax(top, waybill::keep_bits(v, bits, kNever));
    }
    for (; j < end; j++) {
      bad += logits[j] - logits[j];
      if (allows(mask, j)) last = std::max(last, logits[j]);
    }
    const float largest = std::max(last, waybill::hmax(top));
    if (largest > best) best = largest, found = block;
  }
  while (found < vocab - 1 && !(allows(mask, found) && logits[found] == best)) found++;
  *id = found;
  *finite = bad + waybill::hsum(rest) == 0.f;
}

}  // namespace

extern "C" {

// logits [rows][vocab]; masks [rows][mask_bytes], one bit a token, the lowest bit of the first byte first. Of tokens that
// tie, the lowest id. A row that is not finite gets any.
void waybill_allowed_peaks(void* pool, const float* logits, const uint8_t* masks, int rows, int vocab, int mask_bytes,
                           int32_t* ids, uint8_t* finite) {
  static_cast<waybill::Pool*>(pool)->run(1, &rows, [&](int, int row, int) {
    const auto at = static_cast<size_t>(row);
    find(logits + at * vocab, masks + at * mask_bytes, vocab, ids + row, finite + row);
  });
}

}  // extern "C"
