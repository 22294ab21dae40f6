#ifndef GENTRIE_ZEROS_H_
#define GENTRIE_ZEROS_H_

#include <cstdint>

namespace gentrie {

/// Writes zeros to [data, data + nbytes). Much memory is written past the caches: an ordinary store reads each line
/// before it is overwritten, which is a third of the time.
void write_zeros(void* data, std::uint64_t nbytes);

}  // namespace gentrie

#endif  // GENTRIE_ZEROS_H_
