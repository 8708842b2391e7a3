#include "test_pch.hpp"
