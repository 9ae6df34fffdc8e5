// Host side of matmul_kernel.cuh and sums_kernel.cuh, compiled once for all ops.
#include "products.h"

#include <type_traits>

#include "sums_kernel.cuh"

namespace mop {
namespace {

// Returns how a tile of an operand is read: along the axis whose stride is 1, by 16 bytes if every address allows it.
template <class T>
Layout layout_of(const T* data, const Axis& first, Strides first_strides, const Axis& second, Strides second_strides,
                 Strides batch) {
  const bool along_second = second_strides.stride == 1;
  const Axis& along = along_second ? second : first;
  const Strides own = along_second ? second_strides : first_strides;
  const Strides across = along_second ? first_strides : second_strides;
  constexpr int width = Pack<T>::size;
  const auto whole = [](i64 value) { return value % width == 0; };
  const bool packed = own.stride == 1 && whole(along.inner) && whole(own.outer_stride) && whole(across.outer_stride) &&
                      whole(across.stride) && whole(batch.outer_stride) && whole(batch.stride) && is_aligned16(data);
  return {along_second, packed};
}

}  // namespace

// Long sums are cut into chunks, so that many blocks share them.
template <class In, class Out>
void sum_parts(const Launch& launch, const Tensor& like, const In* from, i64 groups, i64 parts, i64 size, Out* to) {
  constexpr i64 kChunk = 128;
  constexpr int kThreads = 256;
  const auto run = [&](auto* result, i64 chunks) {
    using Result = std::remove_pointer_t<decltype(result)>;
    const Sum<In, Result> sum{from, result, groups, parts, div_up(std::max<i64>(1, parts), chunks), chunks, size};
    constexpr int width = Pack<In>::size;
    const int threads = threads_of_block(kThreads);
    const bool packed = size % width == 0 && is_aligned16(from);
    const i64 positions = i64(sum_shape(threads).positions) * (packed ? width : 1);
    const i64 blocks = groups * chunks * div_up(size, positions), bytes = positions * sum_shape(threads).lanes * 4;
    if (packed)
      launch("sum", sum_kernel<width, In, Result>, blocks, kThreads, bytes, sum);
    else
      launch("sum", sum_kernel<1, In, Result>, blocks, kThreads, bytes, sum);
  };
  if (parts <= 2 * kChunk) return run(to, 1);
  const i64 chunks = div_up(parts, kChunk);
  const Tensor partial = empty_float(like, {groups, chunks, size});
  run(out<float>(partial), chunks);
  sum_parts<float>(launch, like, in<float>(partial), groups, chunks, size, to);
}

// See products.h.
template <class T>
void matmul(const Launch& launch, const Tensor& like, const char* name, Matmul<T> p, i64 c_size) {
  constexpr int kThreads = 256;
  constexpr i64 kEnoughBlocks = 256;  // about two for each multiprocessor of a large GPU; fixed, as it orders sums
  p.layout_a = layout_of(p.a, p.m, p.m.first, p.k, p.k.first, p.batch.first);
  p.layout_b = layout_of(p.b, p.k, p.k.second, p.n, p.n.first, p.batch.second);
  p.layout_c = layout_of(p.c, p.m, p.m.second, p.n, p.n.second, p.batch.third);
  const TileShape shape = tile_shape(threads_of_block(kThreads));
  const i64 tiles = p.batch.size * div_up(p.m.size, i64(shape.rows())) * div_up(p.n.size, i64(shape.columns()));
  p.splits = 1;
  if (tiles > 0 && tiles <= kEnoughBlocks / 2)
    p.splits = std::max<i64>(1, std::min(kEnoughBlocks / tiles, p.k.size / (2 * kDepth)));
  p.c_size = c_size;
  T* const c = p.c;
  Tensor parts;
  if (p.splits > 1) {
    parts = empty_float(like, {p.splits, c_size});
    p.parts = out<float>(parts);
    p.c = nullptr;
  }
  launch(name, matmul_kernel<T>, tiles * p.splits, kThreads, shape.shared_bytes(), p);
  if (p.splits > 1) sum_parts<float>(launch, like, in<float>(parts), 1, p.splits, c_size, c);
}

#define MOP_INSTANTIATE(T)                                                            \
  template void matmul<T>(const Launch&, const Tensor&, const char*, Matmul<T>, i64); \
  template void sum_parts<T, T>(const Launch&, const Tensor&, const T*, i64, i64, i64, T*);
MOP_INSTANTIATE(float)
MOP_INSTANTIATE(Bfloat16)
MOP_INSTANTIATE(Half)
template void sum_parts<float, Bfloat16>(const Launch&, const Tensor&, const float*, i64, i64, i64, Bfloat16*);
template void sum_parts<float, Half>(const Launch&, const Tensor&, const float*, i64, i64, i64, Half*);

}  // namespace mop
