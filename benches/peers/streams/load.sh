#!/usr/bin/env bash
# Creates a topic and fills it with unique tokens; see Load.java for the flags.
#
#   load.sh --brokers 127.0.0.1:19092 --topic bench --partitions 4 --messages 2000000
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/java.sh"
run_java 512m Load "$@"
