// One SIMD register of the instruction level that this file is compiled for, by the compiler's vector extensions.
//
// Every level file compiles these templates again with other flags, so they stand in an anonymous namespace, and no
// template of std:: may be used beside them: a shared weak symbol could be taken from the wrong level.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <class T>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecType<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

#define MOP_INLINE static inline __attribute__((always_inline))

template <class T>
MOP_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
MOP_INLINE void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof(v));
}

#if defined(__AVX512F__)
MOP_INLINE __mmask16 lane_mask(int n) { return __mmask16((1u << n) - 1); }
MOP_INLINE Vec<float> load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(lane_mask(n), p); }
MOP_INLINE Vec<double> load_first(const double* p, int n) { return _mm512_maskz_loadu_pd(__mmask8(lane_mask(n)), p); }
MOP_INLINE void store_first(float* p, Vec<float> v, int n) { _mm512_mask_storeu_ps(p, lane_mask(n), v); }
MOP_INLINE void store_first(double* p, Vec<double> v, int n) { _mm512_mask_storeu_pd(p, __mmask8(lane_mask(n)), v); }
MOP_INLINE void stream(float* p, Vec<float> v) { _mm512_stream_ps(p, v); }
MOP_INLINE void stream(double* p, Vec<double> v) { _mm512_stream_pd(p, v); }
#elif defined(__AVX2__)
// all ones in the first n lanes
MOP_INLINE __m256i lane_mask(const float*, int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MOP_INLINE __m256i lane_mask(const double*, int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
MOP_INLINE Vec<float> load_first(const float* p, int n) { return _mm256_maskload_ps(p, lane_mask(p, n)); }
MOP_INLINE Vec<double> load_first(const double* p, int n) { return _mm256_maskload_pd(p, lane_mask(p, n)); }
// AMD's processors take some twenty cycles per masked store, so half a register is stored without a mask
MOP_INLINE void store_first(float* p, Vec<float> v, int n) {
  if (n == 4)
    _mm_storeu_ps(p, _mm256_castps256_ps128(v));
  else
    _mm256_maskstore_ps(p, lane_mask(p, n), v);
}
MOP_INLINE void store_first(double* p, Vec<double> v, int n) {
  if (n == 2)
    _mm_storeu_pd(p, _mm256_castpd256_pd128(v));
  else
    _mm256_maskstore_pd(p, lane_mask(p, n), v);
}
MOP_INLINE void stream(float* p, Vec<float> v) { _mm256_stream_ps(p, v); }
MOP_INLINE void stream(double* p, Vec<double> v) { _mm256_stream_pd(p, v); }
#else
template <class T>
MOP_INLINE Vec<T> load_first(const T* p, int n) {
  Vec<T> v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class T>
MOP_INLINE void store_first(T* p, Vec<T> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#if defined(__SSE2__)
MOP_INLINE void stream(float* p, Vec<float> v) { _mm_stream_ps(p, v); }
MOP_INLINE void stream(double* p, Vec<double> v) { _mm_stream_pd(p, v); }
#else
template <class T>
MOP_INLINE void stream(T* p, Vec<T> v) {
  store(p, v);
}
#endif
#endif

// The first `lanes` lanes, at full speed if these are all.
template <class T>
MOP_INLINE Vec<T> load_lanes(const T* p, int lanes) {
  return lanes == kLanes<T> ? load(p) : load_first(p, lanes);
}
template <class T>
MOP_INLINE void store_lanes(T* p, Vec<T> v, int lanes) {
  if (lanes == kLanes<T>)
    store(p, v);
  else
    store_first(p, v, lanes);
}

// Streamed stores are weakly ordered: a kernel that streams ends with this fence.
MOP_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// A square block of registers, transposed in place.
template <class T>
MOP_INLINE void transpose_block(const T*, Vec<T>* block) {  // the pointer only names the type
  constexpr int W = kLanes<T>;
  T from[W * W], to[W * W];
  for (int m = 0; m < W; ++m) store(from + m * W, block[m]);
  for (int m = 0; m < W; ++m)
    for (int n = 0; n < W; ++n) to[n * W + m] = from[m * W + n];
  for (int m = 0; m < W; ++m) block[m] = load(to + m * W);
}
#if defined(__AVX512F__)
MOP_INLINE void transpose_block(const float*, Vec<float>* block) {
  Vec<float> pairs[16], quads[16];
  for (int k = 0; k < 16; k += 2) {
    pairs[k] = _mm512_unpacklo_ps(block[k], block[k + 1]);
    pairs[k + 1] = _mm512_unpackhi_ps(block[k], block[k + 1]);
  }
  for (int k = 0; k < 16; k += 4)  // quads[k + h], lane of four L: column 4 L + h of the rows k to k + 3
    for (int h = 0; h < 2; ++h) {
      quads[k + 2 * h] = _mm512_shuffle_ps(pairs[k + h], pairs[k + h + 2], 0x44);
      quads[k + 2 * h + 1] = _mm512_shuffle_ps(pairs[k + h], pairs[k + h + 2], 0xee);
    }
  for (int h = 0; h < 4; ++h) {
    const Vec<float> even[2] = {_mm512_shuffle_f32x4(quads[h], quads[h + 4], 0x88),
                                _mm512_shuffle_f32x4(quads[h + 8], quads[h + 12], 0x88)};
    const Vec<float> odd[2] = {_mm512_shuffle_f32x4(quads[h], quads[h + 4], 0xdd),
                               _mm512_shuffle_f32x4(quads[h + 8], quads[h + 12], 0xdd)};
    block[h] = _mm512_shuffle_f32x4(even[0], even[1], 0x88);
    block[h + 4] = _mm512_shuffle_f32x4(odd[0], odd[1], 0x88);
    block[h + 8] = _mm512_shuffle_f32x4(even[0], even[1], 0xdd);
    block[h + 12] = _mm512_shuffle_f32x4(odd[0], odd[1], 0xdd);
  }
}
#elif defined(__AVX2__)
MOP_INLINE void transpose_block(const float*, Vec<float>* block) {
  Vec<float> pairs[8], quads[8];
  for (int k = 0; k < 8; k += 2) {
    pairs[k] = _mm256_unpacklo_ps(block[k], block[k + 1]);
    pairs[k + 1] = _mm256_unpackhi_ps(block[k], block[k + 1]);
  }
  for (int k = 0; k < 8; k += 4)
    for (int h = 0; h < 2; ++h) {
      quads[k + 2 * h] = _mm256_shuffle_ps(pairs[k + h], pairs[k + h + 2], 0x44);
      quads[k + 2 * h + 1] = _mm256_shuffle_ps(pairs[k + h], pairs[k + h + 2], 0xee);
    }
  for (int k = 0; k < 4; ++k) {
    block[k] = _mm256_permute2f128_ps(quads[k], quads[k + 4], 0x20);
    block[k + 4] = _mm256_permute2f128_ps(quads[k], quads[k + 4], 0x31);
  }
}
#endif

// Bit k of the result is the sign of lane k.
#if defined(__AVX512F__)
MOP_INLINE unsigned sign_bits(Vec<float> v) { return _mm512_movepi32_mask(_mm512_castps_si512(v)); }
MOP_INLINE unsigned sign_bits(Vec<double> v) { return _mm512_movepi64_mask(_mm512_castpd_si512(v)); }
#elif defined(__AVX2__)
MOP_INLINE unsigned sign_bits(Vec<float> v) { return unsigned(_mm256_movemask_ps(v)); }
MOP_INLINE unsigned sign_bits(Vec<double> v) { return unsigned(_mm256_movemask_pd(v)); }
#elif defined(__SSE2__)
MOP_INLINE unsigned sign_bits(Vec<float> v) { return unsigned(_mm_movemask_ps(v)); }
MOP_INLINE unsigned sign_bits(Vec<double> v) { return unsigned(_mm_movemask_pd(v)); }
#else
template <class Lanes>
MOP_INLINE unsigned sign_bits(Lanes v) {
  unsigned bits = 0;
  for (unsigned k = 0; k < sizeof(v) / sizeof(v[0]); ++k) bits |= unsigned(__builtin_signbit(v[k]) != 0) << k;
  return bits;
}
#endif

#if defined(__AVX512F__)
MOP_INLINE float sum_of_lanes(Vec<float> v) { return _mm512_reduce_add_ps(v); }
MOP_INLINE double sum_of_lanes(Vec<double> v) { return _mm512_reduce_add_pd(v); }
template <class T>
MOP_INLINE T sum_lanes(Vec<T> v) {
  return sum_of_lanes(v);
}
#else
template <class T>
MOP_INLINE T sum_lanes(Vec<T> v) {
  T parts[kLanes<T>];
  store(parts, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}
#endif

}  // namespace
