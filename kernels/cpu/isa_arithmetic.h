// The scalar rules for files that are compiled with the flags of one instruction set.
//
// An inline function of a shared header, compiled in a file with -mavx512f and not inlined, becomes
// a weak symbol. The linker keeps one copy of it for the whole program, perhaps the AVX-512 one,
// and a baseline CPU then dies in code that has nothing to do with AVX-512. Therefore such files
//   - include arithmetic.h through this header, which puts its functions into an unnamed
//     namespace: every file has its own copies with internal linkage;
//   - keep their helpers in unnamed namespaces, and instantiate nothing of the standard library;
//   - export only plain functions with names of their own level.
// kernels/weak_symbols_test.cmake lists the symbols of their object files and fails on a weak one.
#pragma once

#define FIXPOINT_INTERNAL_ARITHMETIC
#include "kernels/reference/arithmetic.h"
