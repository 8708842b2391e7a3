# The few words in which every folder's CMakeLists.txt is written.

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
if(MOTLEY_TESTS)
  enable_testing()
  find_package(GTest REQUIRED)
endif()

add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Werror=return-type -fvisibility=hidden)
if(MOTLEY_SANITIZE)
  add_compile_options(-fsanitize=${MOTLEY_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${MOTLEY_SANITIZE})
endif()

# motley_room(NAME SOURCES ... [LINK ...] [TESTS ...] [TEST_LINK ...])
# A static library motley_NAME of src/NAME, and, if there are tests, one program NAME_test of them.
function(motley_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINK;TESTS;TEST_LINK" ${ARGN})
  add_library(motley_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(motley_${name} PUBLIC ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(motley_${name} PUBLIC ${ROOM_LINK})
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
  target_compile_definitions(${name} PRIVATE MOTLEY_SOURCE_DIR="${CMAKE_SOURCE_DIR}" MOTLEY_BINARY_DIR="${CMAKE_BINARY_DIR}")
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
