# SPDX-License-Identifier: Apache-2.0
# Test, fuzz, check and demo targets.
