// The interface of the kernels of prefix_attention: one head of one example.
//
// Columns are the prefix, then the tokens. All columns of a block of queries lie in scratch at once, so the softmax of
// a row needs no second pass over pieces of it, and backward needs no saved output.
#pragma once

#include "dropout.h"

namespace mop {

template <class T>
struct AttentionHead {
  i64 queries, tokens, prefix, width;  // rows of the query, of the key and of the prefix; elements of a head
  i64 row;                             // from one token to the next, in query, key, value, out and their gradients
  const T *query, *key, *value;
  const T *prefix_key, *prefix_value;  // [prefix, width], or null
  const T* bias;                       // [queries, tokens], or null
  const unsigned char* real;           // [tokens], or null: all are real
  bool causal;                         // query i sees no token after token i
  T scale;
  Dropout dropout;
  i64 dropout_row;  // of query 0
};

template <class T>
struct AttentionGradients {
  const T *out, *lse;  // the gradient of out, and the saved lse, [queries]
  i64 out_row;
  T *query, *key, *value, *prefix_key, *prefix_value;  // made; null: not asked for
};

// The sizes of the scratch of a head. Rows of scores lie at an odd number of groups: at distances of a power of two,
// the elements of a column would share a few sets of the L1 cache. Blocks have fewer rows if rows are long.
struct AttentionSizes {
  i64 columns, stride, width, rows;  // rows: of a block of queries, a multiple of the 6 rows of a tile
};

template <class T>
static inline AttentionSizes attention_sizes(i64 columns, i64 width) {
  constexpr i64 kGroup = 16, kCache = 256 * 1024;
  const i64 groups = (columns + kGroup - 1) / kGroup, stride = (groups | 1) * kGroup;
  i64 rows = 48;
  while (rows > 6 && rows * stride * i64(sizeof(T)) > kCache) rows /= 2;
  return {groups * kGroup, stride, (width + kGroup - 1) / kGroup * kGroup, rows};
}

}  // namespace mop
