# Fails if an object file of an instruction-set level defines a weak symbol: the linker could give that copy, with its
# AVX-512 instructions, to code that runs on every CPU (kernels/cpu/isa_arithmetic.h).
#   cmake -DNM=<nm> -DOBJECTS=<a.o,b.o> -P weak_symbols_test.cmake
string(REPLACE "," ";" objects "${OBJECTS}")
if(NOT objects)
  message(FATAL_ERROR "no object files given")
endif()
set(weak "")
foreach(object IN LISTS objects)
  execute_process(COMMAND ${NM} --defined-only --demangle ${object}
                  OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
  if(failed OR NOT symbols MATCHES " T ")
    message(FATAL_ERROR "${object}: nm shows no functions")
  endif()
  string(REGEX MATCHALL "[^\n]* [WVuwv] [^\n]*" found "${symbols}")
  foreach(line IN LISTS found)
    string(APPEND weak "\n${object}: ${line}")
  endforeach()
endforeach()
if(weak)
  message(FATAL_ERROR "weak symbols:${weak}")
endif()
list(LENGTH objects count)
message(STATUS "no weak symbols in ${count} object files")
