# The few words in which every folder's CMakeLists.txt is written.

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
if(MOTLEY_TESTS)
  enable_testing()
  find_package(GTest REQUIRED)
endif()

set(motley_warnings -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Werror=return-type -fvisibility=hidden)
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${motley_warnings}>")  # nvcc has words of its own
if(MOTLEY_SANITIZE)
  add_compile_options(-fsanitize=${MOTLEY_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${MOTLEY_SANITIZE})
  if(MOTLEY_SANITIZE MATCHES "undefined")
    # These watch every reference: tests take half as long again with them. AddressSanitizer sees what null and
    # object-size see; alignment is watched in rooms, where bytes become numbers.
    add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=null,alignment,object-size,vptr,function>")
  endif()
  add_compile_definitions(MOTLEY_SANITIZED)
  if(MOTLEY_SANITIZE STREQUAL "thread")
    add_compile_definitions(MOTLEY_SANITIZED_THREADS)
  endif()
endif()

# The tests' own code is compiled for speed of compiling: it is half of all there is to compile and little of what runs.
set(motley_test_optimisation "$<$<CONFIG:Release>:-O1>" "$<$<CONFIG:Sanitize>:-O0>")
# So are the rooms under sanitizers, but for those that their tests' time is spent in (OPTIMISED).
set(motley_room_optimisation "$<$<CONFIG:Sanitize>:-O0>")
set(motley_room_options "")
if(MOTLEY_FUZZ)
  list(APPEND motley_room_options -fsanitize=fuzzer-no-link,alignment)
endif()

# The tests' precompiled header, in a program so that its flags (position independent executable) are the tests' own.
if(MOTLEY_TESTS)
  add_executable(motley_test_pch EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/cmake/test_pch.cpp)
  target_link_libraries(motley_test_pch PRIVATE fmt::fmt spdlog::spdlog GTest::gtest GTest::gmock GTest::gtest_main Threads::Threads)
  target_include_directories(motley_test_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake)
  target_precompile_headers(motley_test_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/test_pch.hpp)
  target_compile_options(motley_test_pch PRIVATE ${motley_test_optimisation})
  target_compile_definitions(motley_test_pch PRIVATE MOTLEY_SOURCE_DIR="${CMAKE_SOURCE_DIR}" MOTLEY_BINARY_DIR="${CMAKE_BINARY_DIR}")
endif()

# motley_room(NAME [OPTIMISED] SOURCES ... [LINK ...] [TESTS ...] [TEST_LINK ...])
# A static library motley_NAME of src/NAME, and, if there are tests, one program NAME_test of them.
function(motley_room name)
  cmake_parse_arguments(ROOM "OPTIMISED" "" "SOURCES;LINK;TESTS;TEST_LINK" ${ARGN})
  add_library(motley_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(motley_${name} PUBLIC ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(motley_${name} PUBLIC ${ROOM_LINK})
  target_compile_options(motley_${name} PRIVATE ${motley_room_options})
  if(NOT ROOM_OPTIMISED)
    target_compile_options(motley_${name} PRIVATE ${motley_room_optimisation})
  endif()
  if(MOTLEY_SANITIZE)  # elsewhere plainly: that proves that their headers compile alone (tools/check_headers)
    target_precompile_headers(motley_${name} PRIVATE ${CMAKE_SOURCE_DIR}/cmake/room_pch.hpp)
  endif()
  if(MOTLEY_TESTS AND ROOM_TESTS)
    motley_test(${name}_test SOURCES ${ROOM_TESTS} LINK motley_${name} ${ROOM_TEST_LINK})
  endif()
endfunction()

# motley_test(NAME SOURCES ... LINK ...): a GoogleTest program, registered with CTest as one test.
function(motley_test name)
  cmake_parse_arguments(TEST "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${TEST_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/backends)
  target_link_libraries(${name} PRIVATE ${TEST_LINK} GTest::gtest GTest::gmock GTest::gtest_main Threads::Threads)
  target_compile_options(${name} PRIVATE ${motley_test_optimisation})
  target_compile_definitions(${name} PRIVATE MOTLEY_SOURCE_DIR="${CMAKE_SOURCE_DIR}" MOTLEY_BINARY_DIR="${CMAKE_BINARY_DIR}")
  # What the header was compiled with, also for those that link none of it.
  target_compile_definitions(${name} PRIVATE $<TARGET_PROPERTY:spdlog::spdlog,INTERFACE_COMPILE_DEFINITIONS>
                             $<TARGET_PROPERTY:fmt::fmt,INTERFACE_COMPILE_DEFINITIONS>)
  target_precompile_headers(${name} REUSE_FROM motley_test_pch)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
endfunction()

# motley_plugin(NAME SOURCES ... [LINK ...]): a device plugin lib/motley/NAME.so that exports its entry alone.
function(motley_plugin name)
  cmake_parse_arguments(PLUGIN "" "" "SOURCES;LINK" ${ARGN})
  add_library(motley_plugin_${name} MODULE ${PLUGIN_SOURCES})
  target_include_directories(motley_plugin_${name} PRIVATE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/backends)
  target_link_libraries(motley_plugin_${name} PRIVATE ${PLUGIN_LINK} Threads::Threads)
  set_target_properties(motley_plugin_${name} PROPERTIES OUTPUT_NAME ${name} PREFIX ""
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/motley
                        LINK_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/plugin.map)
  target_link_options(motley_plugin_${name} PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/cmake/plugin.map)
endfunction()
