// Vectors of 16 floats, in the compiler's own vector types: one register with AVX-512, two with AVX2, four with NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace waybill {

// The upper half of a float.
struct bf16 {
  uint16_t bits;
};

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

inline f32x16 broadcast(float x) { return f32x16{} + x; }

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) { return x; }

// Rounds to nearest, ties to even; a NaN stays one.
template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline f32x16 load(const float* p) {
  f32x16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, f32x16 v) { std::memcpy(p, &v, sizeof v); }

inline f32x16 load(const bf16* p) {
  u16x16 half;
  std::memcpy(&half, p, sizeof half);
  return reinterpret_cast<f32x16>(__builtin_convertvector(half, u32x16) << 16);
}

inline void store(bf16* p, f32x16 v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &half, sizeof half);
#else
  const u32x16 bits = reinterpret_cast<u32x16>(v);
  const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32x16 nan = reinterpret_cast<u32x16>((bits & 0x7fffffffu) > 0x7f800000u);
  const u16x16 half = __builtin_convertvector((rounded & ~nan) | (0x7fc0u & nan), u16x16);
  std::memcpy(p, &half, sizeof half);
#endif
}

// Sixteen pairs of neighbours, taken apart.
inline void load_pairs(const bf16* p, f32x16& even, f32x16& odd) {
  u32x16 both;
  std::memcpy(&both, p, sizeof both);
  even = reinterpret_cast<f32x16>(both << 16);
  odd = reinterpret_cast<f32x16>(both & 0xffff0000u);
}

inline f32x16 vmax(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

// Sum and maximum of the lanes, always in the same order.
inline float hsum(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float lane[16];
  std::memcpy(lane, &v, sizeof v);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
#endif
}

inline float hmax(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
  float lane[16];
  std::memcpy(lane, &v, sizeof v);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
#endif
}

// `v` where a lane's index lies in [from, to), else `other`.
inline f32x16 keep_lanes(f32x16 v, int from, int to, float other) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return ((lane >= from) & (lane < to)) ? v : broadcast(other);
}

// e to the x, to about 1e-7 of its value; exactly 0 below -87, and no larger than e to the 88. Smaller results would not be
// normal numbers, and a processor takes over a hundred cycles for each of those: a masked score is one.
inline f32x16 exp(f32x16 x) {
  const f32x16 low = broadcast(-87.f), high = broadcast(88.f);
#if defined(__AVX512F__)
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_GE_OQ);
  const __m512 bounded = _mm512_min_ps(_mm512_max_ps((__m512)x, (__m512)low), (__m512)high);
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(1.44269504f)), 8);
  const f32x16 n = (f32x16)whole;
  x = (f32x16)bounded;
#else
  const i32x16 below = x < low;
  x = below ? low : x;
  x = x > high ? high : x;
  const f32x16 magic = broadcast(12582912.f);   // 1.5 * 2^23: adding it rounds to a whole number
  const f32x16 shifted = x * 1.44269504f + magic, n = shifted - magic;
#endif
  f32x16 f = x - n * 0.693359375f;
  f = f + n * 2.12194440e-4f;
  f32x16 p = f * 1.38888889e-3f + 8.33333333e-3f;
  p = p * f + 4.16666667e-2f;
  p = p * f + 1.66666667e-1f;
  p = p * f + 0.5f;
  p = p * f + 1.f;
  p = p * f + 1.f;
#if defined(__AVX512F__)
  return (f32x16)_mm512_maskz_scalef_ps(normal, (__m512)p, whole);
#else
  const i32x16 power = (i32x16)shifted - 0x4b400000;
  return below ? f32x16{} : p * (f32x16)((power + 127) << 23);
#endif
}

// x times the logistic function of x.
inline f32x16 silu(f32x16 x) { return x / (1.f + exp(-x)); }

// `limit` times the hyperbolic tangent of x / limit.
inline f32x16 cap(f32x16 x, float limit) { return limit - 2.f * limit / (exp(x * (2.f / limit)) + 1.f); }

}  // namespace waybill
