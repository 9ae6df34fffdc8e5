// The host side of the kernels of mop_ffn: the tensors of a call as a Bank.
#pragma once

#include "launch.h"
#include "mop_ffn_plan.h"

namespace mop::ffn {

// The factors of all maps, in the order of the op.
struct Maps {
  const std::vector<Tensor>& tensors;
  i64 count;

  i64 width() const { return i64(tensors.size()) / count; }
  const Tensor& at(i64 map, i64 factor) const { return tensors[map * width() + factor]; }
};

inline Group group_of(const Tensor& t) {
  const i64 layers = t.size(0), experts = t.size(1);
  return {layers > 1, experts > 1, t.numel() / (layers * experts)};
}

// Guards that all maps are alike.
inline FactorGroups groups_of(const Maps& maps, Sides* sides) {
  MOP_GUARD(maps.width() == 3 || maps.width() == 4);
  const auto in_local = maps.at(0, 2).sizes(), in_rule = maps.at(0, 0).sizes(), out_rule = maps.at(0, 1).sizes();
  MOP_GUARD(in_local.size() == 5 && in_rule.size() == 5 && out_rule.size() == 5);
  MOP_GUARD(in_rule[2] == in_local[2] && out_rule[2] == in_local[2] && out_rule[3] == in_rule[4]);
  const i64 in = in_rule[3] * in_local[3], out = out_rule[4] * in_local[4], j = in_rule[2] * in_rule[4];
  MOP_GUARD(std::max({in, out, j}) < (i64(1) << 31) / kMostRows);
  *sides = {int(in_local[2]), int(in_rule[4]), int(in_rule[3]), int(out_rule[4]), int(in_local[3]), int(in_local[4])};
  for (i64 factor = 0; factor < maps.width(); ++factor)
    for (i64 map = 1; map < maps.count; ++map) MOP_GUARD(maps.at(map, factor).sizes() == maps.at(0, factor).sizes());
  FactorGroups groups{group_of(maps.at(0, 0)), group_of(maps.at(0, 1)), group_of(maps.at(0, 2)), {}};
  if (maps.width() == 4) groups.bias = group_of(maps.at(0, 3));
  MOP_GUARD(maps.width() == 3 || (maps.at(0, 3).dim() == 3 && groups.bias.size == out));
  return groups;
}

template <class T>
Factors<T> factors_of(const Maps& maps, i64 map) {
  return {in<T>(maps.at(map, 0)), in<T>(maps.at(map, 1)), in<T>(maps.at(map, 2)),
          maps.width() == 4 ? in<T>(maps.at(map, 3)) : nullptr};
}

template <class T>
bool starts_whole(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0;
}

template <class T>
bool starts_whole(const Factors<T>& factors) {
  return starts_whole(factors.local) && starts_whole(factors.bias);
}

// Returns the bank of a call, without the pointers of the up maps.
template <class T>
Bank<T> bank_of(const Tensor& x, const Maps& down, const Maps& ups, const std::string& activation,
                const std::optional<Tensor>& experts) {
  MOP_GUARD(x.dim() == 4 && down.count == 1 && ups.count > 0 && i64(ups.tensors.size()) % ups.count == 0);
  Bank<T> bank{};
  bank.down_groups = groups_of(down, &bank.down);
  bank.up_groups = groups_of(ups, &bank.up);
  MOP_GUARD(x.size(3) == bank.down.in() && bank.down.out() == bank.up.in());
  bank.activation = activation_of(activation);
  bank.x = in<T>(x);
  bank.rows = x.size(2);
  const i64 x_rows = x.size(0) * x.size(1);
  bank.x_group = {x.size(0) > 1, x.size(1) > 1, x_rows > 0 ? x.numel() / x_rows : 0};
  bank.layers = x.size(0), bank.num_experts = x.size(1);
  const auto for_groups = [&](const auto& see) {
    for (i64 k = 0; k < down.width(); ++k) see(down.at(0, k));
    for (i64 k = 0; k < ups.width(); ++k) see(ups.at(0, k));
  };
  for_groups([&](const Tensor& t) {
    bank.layers = std::max(bank.layers, t.size(0));
    bank.num_experts = std::max(bank.num_experts, t.size(1));
  });
  const auto fits = [&](const Tensor& t) {
    MOP_GUARD((t.size(0) == 1 || t.size(0) == bank.layers) && (t.size(1) == 1 || t.size(1) == bank.num_experts));
  };
  fits(x);
  for_groups(fits);
  bank.experts = experts ? in<i64>(*experts) : nullptr;
  bank.places = experts ? experts->numel() : bank.num_experts;
  bank.down_factors = factors_of<T>(down, 0);
  return bank;
}

// Puts the pointers of `count` up maps, from `first` on, into the bank.
template <class T>
void take_maps(Bank<T>& bank, const Maps& ups, i64 first, i64 count) {
  bank.maps = int(count);
  for (i64 k = 0; k < count; ++k) bank.up_factors[k] = factors_of<T>(ups, first + k);
}

// Returns whether the fast kernels (mop_ffn_kernel.cuh) can read these tensors.
template <class T>
bool reads_by_fours(const Bank<T>& bank) {
  const Sides &down = bank.down, &up = bank.up;
  bool whole = (down.loc_in | down.loc_out | up.loc_in | up.loc_out) % 4 == 0;
  whole = whole && starts_whole(bank.x) && starts_whole(bank.down_factors);
  for (int k = 0; k < bank.maps; ++k) whole = whole && starts_whole(bank.up_factors[k]);
  return whole;
}

}  // namespace mop::ffn
