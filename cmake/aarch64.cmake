# Cross-compilation for Linux on aarch64: Debian's compiler brings libc and libstdc++, scripts/aarch64_sysroot.sh the other
# libraries. Programs run here under qemu-user, with every feature it can emulate.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

cmake_path(SET FIXPOINT_SYSROOT NORMALIZE ${CMAKE_CURRENT_LIST_DIR}/../build/aarch64-sysroot)
set(FIXPOINT_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH ${FIXPOINT_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_LIBRARY_ARCHITECTURE ${FIXPOINT_ARCHITECTURE})
set(CMAKE_CXX_FLAGS_INIT "-isystem ${FIXPOINT_SYSROOT}/usr/include/${FIXPOINT_ARCHITECTURE}")
# RPATH and not RUNPATH: it is also searched for the libraries of libraries.
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,--disable-new-dtags")
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${FIXPOINT_SYSROOT})
set(ENV{PKG_CONFIG_LIBDIR}
  ${FIXPOINT_SYSROOT}/usr/lib/${FIXPOINT_ARCHITECTURE}/pkgconfig:${FIXPOINT_SYSROOT}/usr/share/pkgconfig)

# -L: where the emulated program finds its loader, libc and libstdc++.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu)
