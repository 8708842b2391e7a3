# What an installation holds: bin/motley, lib/libmotley.so, the plugins in lib/motley, where the library and the command
# look for them from their own place, the headers and the CMake package. Components: runtime, command, development.
include(CMakePackageConfigHelpers)

install(FILES include/motley/backend.h include/motley/blocks.hpp include/motley/types.h include/motley/llm.hpp
        DESTINATION include/motley COMPONENT development)
if(TARGET motley_shared)
  install(TARGETS motley_shared LIBRARY DESTINATION lib COMPONENT runtime NAMELINK_COMPONENT development)
endif()
if(TARGET motley)
  install(TARGETS motley RUNTIME DESTINATION bin COMPONENT command)
endif()
foreach(plugin motley_plugin_cpu motley_plugin_ref motley_plugin_sim motley_plugin_cuda)
  if(TARGET ${plugin})
    install(TARGETS ${plugin} LIBRARY DESTINATION lib/motley COMPONENT runtime)
  endif()
endforeach()

configure_package_config_file(cmake/motleyConfig.cmake.in ${CMAKE_BINARY_DIR}/motleyConfig.cmake
                              INSTALL_DESTINATION lib/cmake/motley NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/motleyConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/motleyConfig.cmake ${CMAKE_BINARY_DIR}/motleyConfigVersion.cmake
        DESTINATION lib/cmake/motley COMPONENT development)
