# fixpoint_library(NAME SOURCES ... DEPS ...): the static library of a folder.
function(fixpoint_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
endfunction()

# Every fixpoint_test without the label `unsanitized`: what CI's sanitizer build makes.
add_custom_target(sanitized_tests)

# fixpoint_test(NAME SOURCES ... DEPS ... [LABELS ...]): a GoogleTest program, registered with ctest as one test.
# Tests find the shared data through FIXPOINT_DATA and the real model through FIXPOINT_MODEL; without them they skip aloud.
function(fixpoint_test name)
  if(NOT FIXPOINT_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(NOT "unsanitized" IN_LIST ARG_LABELS)
    add_dependencies(sanitized_tests ${name})
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "unit;${ARG_LABELS}")
endfunction()
