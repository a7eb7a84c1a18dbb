// Vectors of 16 floats: one register with AVX-512, two with AVX2; elsewhere the compiler's own vector type, which it splits.
#pragma once

#include <cmath>
#include <cstddef>
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

#if defined(__AVX2__) && !defined(__AVX512F__)
#define WAYBILL_HALVES 1   // a vector takes two registers
#endif
#if defined(__AVX512F__) && !defined(__AVX512BF16__)
#define WAYBILL_WIDENS 1   // wide registers, and bf16 becomes floats before it is multiplied
#endif

#if defined(WAYBILL_HALVES)
// Left to itself, the compiler keeps a vector that is wider than a register in memory: every product would be a load and a
// store. In two named halves it stays in registers.
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

struct f32x16 {
  f32x8 low, high;
};

inline f32x16 broadcast(float x) { return {(f32x8)_mm256_set1_ps(x), (f32x8)_mm256_set1_ps(x)}; }
inline f32x16 operator+(f32x16 a, f32x16 b) { return {a.low + b.low, a.high + b.high}; }
inline f32x16 operator-(f32x16 a, f32x16 b) { return {a.low - b.low, a.high - b.high}; }
inline f32x16 operator*(f32x16 a, f32x16 b) { return {a.low * b.low, a.high * b.high}; }
inline f32x16 operator/(f32x16 a, f32x16 b) { return {a.low / b.low, a.high / b.high}; }
inline f32x16 operator-(f32x16 a) { return {-a.low, -a.high}; }
inline f32x16 operator+(f32x16 a, float b) { return {a.low + b, a.high + b}; }
inline f32x16 operator+(float a, f32x16 b) { return b + a; }
inline f32x16 operator-(float a, f32x16 b) { return {a - b.low, a - b.high}; }
inline f32x16 operator*(f32x16 a, float b) { return {a.low * b, a.high * b}; }
inline f32x16 operator/(float a, f32x16 b) { return {a / b.low, a / b.high}; }
#else
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

inline f32x16 broadcast(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
#endif

// e to the f, and two to the f, where f is at most half of what doubles them: for V, vectors of floats.
template <class V>
inline V exp_near_zero(V f) {
  V p = f * 1.38888889e-3f + 8.33333333e-3f;
  p = p * f + 4.16666667e-2f;
  p = p * f + 1.66666667e-1f;
  p = p * f + 0.5f;
  p = p * f + 1.f;
  return p * f + 1.f;
}

template <class V>
inline V rough_exp2_near_zero(V f) {
  V p = f * 0.0551716649f + 0.242611122f;
  p = p * f + 0.693260986f;
  return p * f + 0.999928074f;
}

// The same of what is from 0 to 1.
template <class V>
inline V exp2_of_fraction(V f) {
  V p = f * 0.0780245168f + 0.226067164f;
  p = p * f + 0.695833537f;
  return p * f + 0.999925219f;
}

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

#if defined(WAYBILL_HALVES)
// Half by half: a copy of both at once goes by way of the stack, in pieces that cannot be read back before all are written.
inline f32x16 load(const float* p) {
  f32x16 v;
  std::memcpy(&v.low, p, sizeof v.low);
  std::memcpy(&v.high, p + 8, sizeof v.high);
  return v;
}

inline void store(float* p, f32x16 v) {
  std::memcpy(p, &v.low, sizeof v.low);
  std::memcpy(p + 8, &v.high, sizeof v.high);
}

inline f32x8 widened(const bf16* p) {
  u16x8 half;
  std::memcpy(&half, p, sizeof half);
  return (f32x8)(__builtin_convertvector(half, u32x8) << 16);
}

inline f32x16 load(const bf16* p) { return {widened(p), widened(p + 8)}; }

// Floats rounded to bf16, their lower halves zero.
inline u32x8 nearest_bf16(f32x8 v) {
  const u32x8 bits = (u32x8)v;
  const u32x8 nan = (u32x8)((bits & 0x7fffffffu) > 0x7f800000u);
  return ((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u & ~nan) | (0x7fc00000u & nan);
}

inline f32x16 nearest_bf16(f32x16 v) { return {(f32x8)nearest_bf16(v.low), (f32x8)nearest_bf16(v.high)}; }

inline void narrowed(bf16* p, f32x8 v) {
  const u16x8 half = __builtin_convertvector(nearest_bf16(v) >> 16, u16x8);
  std::memcpy(p, &half, sizeof half);
}

inline void store(bf16* p, f32x16 v) {
  narrowed(p, v.low);
  narrowed(p + 8, v.high);
}

// The first or the second of sixteen pairs of neighbours.
template <int kWhich>
inline f32x16 load_of_pairs(const bf16* p) {
  u32x8 low, high;
  std::memcpy(&low, p, sizeof low);
  std::memcpy(&high, p + 16, sizeof high);
  if constexpr (kWhich == 0) return {(f32x8)(low << 16), (f32x8)(high << 16)};
  else return {(f32x8)(low & 0xffff0000u), (f32x8)(high & 0xffff0000u)};
}

inline f32x8 vmax(f32x8 a, f32x8 b) { return a > b ? a : b; }
inline f32x16 vmax(f32x16 a, f32x16 b) { return {vmax(a.low, b.low), vmax(a.high, b.high)}; }

// Sum and maximum of the lanes, always in the same order.
inline float hsum(f32x16 v) {
  const f32x8 half = v.low + v.high;
  float lane[8];
  std::memcpy(lane, &half, sizeof half);
  for (int width = 4; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}

inline float hmax(f32x16 v) {
  const f32x8 half = vmax(v.low, v.high);
  float lane[8];
  std::memcpy(lane, &half, sizeof half);
  for (int width = 4; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

// Whether any lane of one is greater.
inline bool any_greater(f32x16 a, f32x16 b) {
  return (_mm256_movemask_ps((__m256)(a.low > b.low)) | _mm256_movemask_ps((__m256)(a.high > b.high))) != 0;
}

// `v` where a lane's bit is set, the lowest first, else `other`.
inline f32x16 keep_bits(f32x16 v, uint16_t bits, float other) {
  const i32x8 lane = {1, 2, 4, 8, 16, 32, 64, 128};
  const f32x8 others = f32x8{} + other;
  return {((i32x8{} + bits) & lane) != 0 ? v.low : others, ((i32x8{} + (bits >> 8)) & lane) != 0 ? v.high : others};
}

inline f32x8 exp(f32x8 x) {
  const f32x8 low = f32x8{} - 87.f, high = f32x8{} + 88.f;
  const i32x8 below = x < low;
  x = below ? low : x;
  x = x > high ? high : x;
  const f32x8 magic = f32x8{} + 12582912.f;   // 1.5 * 2^23: adding it rounds to a whole number
  const f32x8 shifted = x * 1.44269504f + magic, n = shifted - magic;
  f32x8 f = x - n * 0.693359375f;
  f = f + n * 2.12194440e-4f;
  const f32x8 p = exp_near_zero(f);
  const i32x8 power = (i32x8)shifted - 0x4b400000;
  return below ? f32x8{} : p * (f32x8)((power + 127) << 23);
}

inline f32x8 rough_exp2(f32x8 y) {
  const f32x8 magic = f32x8{} + 12582912.f, shifted = y + magic, f = y - (shifted - magic);
  const f32x8 p = rough_exp2_near_zero(f);
  const i32x8 power = (i32x8)shifted - 0x4b400000;
  return y < f32x8{} - 125.f ? f32x8{} : p * (f32x8)((power + 127) << 23);
}

// Both as below.
inline f32x16 exp(f32x16 x) { return {exp(x.low), exp(x.high)}; }
inline f32x16 rough_exp2(f32x16 y) { return {rough_exp2(y.low), rough_exp2(y.high)}; }
#else
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

// Floats rounded to bf16, their lower halves zero.
inline f32x16 nearest_bf16(f32x16 v) {
  const u32x16 bits = reinterpret_cast<u32x16>(v);
  const u32x16 nan = reinterpret_cast<u32x16>((bits & 0x7fffffffu) > 0x7f800000u);
  return reinterpret_cast<f32x16>(((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u & ~nan) | (0x7fc00000u & nan));
}

inline void store(bf16* p, f32x16 v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
#else
  const u16x16 half = __builtin_convertvector(reinterpret_cast<u32x16>(nearest_bf16(v)) >> 16, u16x16);
#endif
  std::memcpy(p, &half, sizeof half);
}

// The first or the second of sixteen pairs of neighbours.
template <int kWhich>
inline f32x16 load_of_pairs(const bf16* p) {
  u32x16 both;
  std::memcpy(&both, p, sizeof both);
  return reinterpret_cast<f32x16>(kWhich == 0 ? both << 16 : both & 0xffff0000u);
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

// Whether any lane of one is greater.
inline bool any_greater(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#else
  bool any = false;
  for (int i = 0; i < 16; i++) any = any || a[i] > b[i];
  return any;
#endif
}

// `v` where a lane's bit is set, the lowest first, else `other`.
inline f32x16 keep_bits(f32x16 v, uint16_t bits, float other) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_mask_mov_ps((__m512)broadcast(other), bits, (__m512)v);
#else
  const i32x16 lane = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return ((i32x16{} + static_cast<int32_t>(bits)) & lane) != 0 ? v : broadcast(other);
#endif
}

// e to the x, to about 1e-7 of its value; exactly 0 below -87, and no larger than e to the 88. Smaller results would not be
// normal numbers, and a processor takes over a hundred cycles for each of those: a masked score is one.
inline f32x16 exp(f32x16 x) {
  const f32x16 low = broadcast(-87.f), high = broadcast(88.f);
#if defined(__AVX512F__)
  // Not less, and the bounds first: a NaN stays one.
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_NLT_UQ);
  const __m512 bounded = _mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));
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
  const f32x16 p = exp_near_zero(f);
#if defined(__AVX512F__)
  return (f32x16)_mm512_maskz_scalef_ps(normal, (__m512)p, whole);
#else
  const i32x16 power = (i32x16)shifted - 0x4b400000;
  return below ? f32x16{} : p * (f32x16)((power + 127) << 23);
#endif
}

// Two to the y, to 8e-5 of its value, for y of at most 127; 0 where that would be no normal number. A NaN stays one.
inline f32x16 rough_exp2(f32x16 y) {
#if defined(__AVX512F__)
  // What is above the whole number below y, and a polynomial for it: one instruction less than to the nearest whole number.
  const f32x16 f = (f32x16)_mm512_reduce_ps((__m512)y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)y, _mm512_set1_ps(-125.f), _CMP_NLT_UQ);
  return (f32x16)_mm512_maskz_scalef_ps(normal, (__m512)exp2_of_fraction(f), (__m512)y);
#else
  const f32x16 magic = broadcast(12582912.f), shifted = y + magic, f = y - (shifted - magic);
  const f32x16 p = rough_exp2_near_zero(f);
  const i32x16 power = (i32x16)shifted - 0x4b400000;
  return y < broadcast(-125.f) ? f32x16{} : p * (f32x16)((power + 127) << 23);
#endif
}
#endif

// ------------------------------------------------------------------------------------------------------ factors
// What a product's left factor is kept as: the model's type, but instead of bf16 floats where the processor has no instruction
// for products of bf16. Each is met by many weights, and would be widened as often. What linear layers read is rounded to bf16
// all the same; softmax weights need not be.
template <class T>
struct FactorOf {
  using type = T;
};
#if !defined(__AVX512BF16__)
template <>
struct FactorOf<bf16> {
  using type = float;
};
#endif
template <class T>
using Factor = typename FactorOf<T>::type;

// Rounds to T, and keeps it as `To`: T itself, or float.
template <class T, class To>
inline void store_rounded(To* p, f32x16 v) {
  if constexpr (sizeof(To) == sizeof(T)) store(p, v);
  else store(p, nearest_bf16(v));
}

template <class T, class To>
inline To rounded(float x) {
  const T narrow = from_float<T>(x);
  if constexpr (sizeof(To) == sizeof(T)) return narrow;
  else return to_float(narrow);
}

// The compiler reads again what it needs of memory after this, rather than keep it: where there are no registers left.
inline void forget_memory() { asm volatile("" : : : "memory"); }

// What is fetched while something else is computed: parts of it at a time, `step` elements on with every line that is met. To the
// second-level cache: a processor has far more of its misses in flight than of the first-level cache's.
template <class T>
struct Ahead {
  const T* lines;
  size_t apart, step;   // elements between two parts, and between two lines; nothing is fetched with a step of 0

  // What is fetched while the parts from `part` on are met.
  Ahead of(int part) const { return {lines + part * apart, apart, step}; }

  void fetch(int part, int line) const { __builtin_prefetch(lines + part * apart + line * step, 0, 2); }
};

// x times the logistic function of x.
inline f32x16 silu(f32x16 x) { return x / (1.f + exp(-x)); }

// `limit` times the hyperbolic tangent of x / limit.
inline f32x16 cap(f32x16 x, float limit) { return limit - 2.f * limit / (exp(x * (2.f / limit)) + 1.f); }

}  // namespace waybill
