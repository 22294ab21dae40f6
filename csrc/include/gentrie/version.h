// The version of gentrie. This is the only place it is written: CMake and the Python build read it
// from here.

#ifndef GENTRIE_VERSION_H_
#define GENTRIE_VERSION_H_

#define GENTRIE_VERSION_MAJOR 0
#define GENTRIE_VERSION_MINOR 1
#define GENTRIE_VERSION_PATCH 0

#define GENTRIE_STRINGIFY_(x) #x
#define GENTRIE_STRINGIFY(x) GENTRIE_STRINGIFY_(x)

// "major.minor.patch"
#define GENTRIE_VERSION                    \
  GENTRIE_STRINGIFY(GENTRIE_VERSION_MAJOR) \
  "." GENTRIE_STRINGIFY(GENTRIE_VERSION_MINOR) "." GENTRIE_STRINGIFY(GENTRIE_VERSION_PATCH)

#endif  // GENTRIE_VERSION_H_
