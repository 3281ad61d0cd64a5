# Where CUDA is: an installed toolkit, or PyPI's packages (docs/GPU.md) in the active virtual environment, in
# build/cuda_venv or below FIXPOINT_CUDA_ROOT. Sets
#   FIXPOINT_CUDA_HEADERS       ON: cublasLt.h was found in FIXPOINT_CUBLASLT_INCLUDE_DIR; the calibrator's cuBLASLt backend is built
#   FIXPOINT_CUDA_KERNELS       ON: the server's CUDA backend is built, with nvcc. Only where it is asked for: it takes
#                               minutes, and has not run on a GPU yet (docs/GPU.md)
set(FIXPOINT_CUDA AUTO CACHE STRING "NVIDIA GPUs: AUTO (the calibrator's products where CUDA's headers are), ON (the server's backend too, or an error), OFF")
set_property(CACHE FIXPOINT_CUDA PROPERTY STRINGS AUTO ON OFF)
set(FIXPOINT_CUDA_ROOT "" CACHE PATH "Folder of CUDA, with bin/nvcc, include and lib or lib64, to look in first")
set(FIXPOINT_CUDA_ARCHITECTURES "80;89;90a;100;120" CACHE STRING "GPUs that the kernels are compiled for; PTX for all from 8.0 on is added")
if(NOT FIXPOINT_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FIXPOINT_CUDA is \"${FIXPOINT_CUDA}\", not AUTO, ON or OFF")
endif()

set(FIXPOINT_CUDA_HEADERS OFF)
set(FIXPOINT_CUDA_KERNELS OFF)
if(NOT FIXPOINT_CUDA STREQUAL "OFF")
  file(GLOB pypi_roots
    "$ENV{VIRTUAL_ENV}/lib/python3*/site-packages/nvidia/cu13"
    "${CMAKE_SOURCE_DIR}/build/cuda_venv/lib/python3*/site-packages/nvidia/cu13")
  set(roots ${FIXPOINT_CUDA_ROOT} ${pypi_roots})
  # CMake 3.25 sets a property of this target unseen, but CUDA 13 has no such library.
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
  find_package(CUDAToolkit 12 QUIET)
  find_path(FIXPOINT_CUBLASLT_INCLUDE_DIR cublasLt.h
    HINTS ${roots} PATH_SUFFIXES include PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH)
  if(FIXPOINT_CUBLASLT_INCLUDE_DIR)
    set(FIXPOINT_CUDA_HEADERS ON)
  endif()
  if(FIXPOINT_CUDA STREQUAL "ON")
    find_program(FIXPOINT_NVCC nvcc HINTS ${roots} PATHS /usr/local/cuda PATH_SUFFIXES bin)
    find_library(FIXPOINT_CUDART_STATIC cudart_static
      HINTS ${roots} PATHS ${CUDAToolkit_LIBRARY_DIR} /usr/local/cuda PATH_SUFFIXES lib lib64)
    if(NOT FIXPOINT_CUDA_HEADERS OR NOT FIXPOINT_NVCC OR NOT FIXPOINT_CUDART_STATIC)
      message(FATAL_ERROR "FIXPOINT_CUDA is ON, but nvcc, cublasLt.h and libcudart_static.a of CUDA 13 were not all found")
    endif()
    execute_process(COMMAND ${FIXPOINT_NVCC} --version OUTPUT_VARIABLE nvcc_version)
    if(NOT nvcc_version MATCHES "release (1[3-9]|[2-9][0-9])\\.")
      message(FATAL_ERROR "FIXPOINT_CUDA is ON, but ${FIXPOINT_NVCC} is older than CUDA 13")
    endif()
    set(FIXPOINT_CUDA_KERNELS ON)
  endif()
endif()
message(STATUS "CUDA: headers ${FIXPOINT_CUDA_HEADERS}, kernels ${FIXPOINT_CUDA_KERNELS}")

# fixpoint_nvcc_objects(OUT SOURCES ...): objects of CUDA sources of this folder, with warnings as errors. nvcc is called as
# a custom command: enable_language(CUDA) would need a toolkit at configuration on every machine that reads these files.
function(fixpoint_nvcc_objects out)
  set(code)
  foreach(architecture IN LISTS FIXPOINT_CUDA_ARCHITECTURES)
    list(APPEND code -gencode=arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  list(APPEND code -gencode=arch=compute_80,code=compute_80)
  set(objects)
  foreach(source IN LISTS ARGN)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/nvcc/${source}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/nvcc
      COMMAND ${FIXPOINT_NVCC} -std=c++20 --expt-relaxed-constexpr -O3 -I${CMAKE_SOURCE_DIR} ${code}
              -Werror all-warnings -Xcompiler=-fPIC,-Wall,-Wextra,-Wno-missing-field-initializers
              -Xptxas=--warning-as-error,--warn-on-spills,--warn-on-local-memory-usage
              -MD -MF ${object}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${source}
      DEPFILE ${object}.d
      COMMENT "nvcc ${source}"
      VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  set(${out} ${objects} PARENT_SCOPE)
endfunction()
