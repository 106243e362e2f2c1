#!/usr/bin/env bash
# Consumes a filled topic with Confluent's Parallel Consumer, once, by key.
#
#   run.sh --brokers B --topic T --messages N --slots S --sleep-ms M [--heap 1g]
#
# Standard output gets one line, everything else goes to standard error:
#   parallel slots S messages N seconds T handler_us H rss_kb K
# where T is from the first call of the function to the end of the last one, and H what a call took, on average.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
heap=1g pass=()
while (($#)); do
  case $1 in
    -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  esac
  (($# >= 2)) || { echo "run.sh: $1 needs a value" >&2; exit 2; }
  case $1 in
    --heap) heap=$2 ;;
    --brokers | --topic | --messages | --slots | --sleep-ms) pass+=("$1" "$2") ;;
    *) echo "run.sh: unknown flag $1" >&2; exit 2 ;;
  esac
  shift 2
done
lib=$("$here/../build.sh" parallel)
exec java "-Xmx$heap" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" hapax.peers.Parallel "${pass[@]}"
