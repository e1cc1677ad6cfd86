// See core.h.
#pragma once

#include "core.h"
