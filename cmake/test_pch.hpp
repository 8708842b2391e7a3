// What the tests include beside cmake/room_pch.hpp, compiled once.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "room_pch.hpp"
