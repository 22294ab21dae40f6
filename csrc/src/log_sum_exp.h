#ifndef GENTRIE_LOG_SUM_EXP_H_
#define GENTRIE_LOG_SUM_EXP_H_

#include <cstdint>

namespace gentrie {

/// log(sum(exp(values))): NaN where a value is NaN, infinity where one is, -infinity where all are. To about 1e-7 for
/// float, whose exponentials are those of single precision, summed in double.
double log_sum_exp(const float* values, std::uint64_t count);
double log_sum_exp(const double* values, std::uint64_t count);

}  // namespace gentrie

#endif  // GENTRIE_LOG_SUM_EXP_H_
