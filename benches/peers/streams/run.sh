#!/usr/bin/env bash
# Runs the Kafka Streams dedup application over a filled topic, once.
#
#   run.sh --brokers B --topic T --messages N --guarantee at_least_once|exactly_once_v2
#          [--restore] [--threads 2] [--window-hours 24] [--state-dir DIR] [--keep]
#          [--heap 1g] [--set KEY=VALUE]...
#
# Standard output gets one line a run; everything else goes to standard error:
#   streams GUARANTEE messages N seconds S rate R rss_kb K
#   streams_restore GUARANTEE entries E seconds S rate R rss_kb K     (with --restore)
#
# --restore    afterwards deletes the local state, starts again under the same
#              application id and measures how long the changelog takes to restore
# --state-dir  an empty or absent folder; default: a temporary one, removed at the end
# --keep       keep the changelog topic and the group on the broker
# --set        any Kafka Streams property, for those who want to tune it
set -euo pipefail

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0; }

brokers='' topic='' messages='' guarantee='' state='' restore=0 keep=0 heap=1g
pass=()
while (($#)); do
  case $1 in
    --restore) restore=1; shift; continue ;;
    --keep) keep=1; shift; continue ;;
    -h | --help) usage ;;
  esac
  (($# >= 2)) || { echo "run.sh: $1 needs a value" >&2; exit 2; }
  case $1 in
    --brokers) brokers=$2 ;;
    --topic) topic=$2 ;;
    --messages) messages=$2 ;;
    --guarantee) guarantee=$2 ;;
    --state-dir) state=$2 ;;
    --heap) heap=$2 ;;
    --threads | --window-hours | --set) pass+=("$1" "$2") ;;
    *) echo "run.sh: unknown flag $1" >&2; exit 2 ;;
  esac
  shift 2
done
for flag in brokers topic messages guarantee; do
  [[ -n ${!flag} ]] || { echo "run.sh: --$flag is required" >&2; exit 2; }
done

source "$(dirname "${BASH_SOURCE[0]}")/java.sh"

if [[ -n $state ]]; then
  mkdir -p "$state"
  [[ -z $(ls -A "$state") ]] || { echo "run.sh: --state-dir $state is not empty" >&2; exit 2; }
else
  state=$(mktemp -d "${TMPDIR:-/tmp}/hapax-peers-streams.XXXXXX")
  trap 'rm -rf "$state"' EXIT
fi

# A fresh application id: no committed offsets, no changelog from an earlier run.
app=peers-streams-$guarantee-$(date +%s)-$$
dedup() {
  run_java "$heap" Dedup --brokers "$brokers" --topic "$topic" --messages "$messages" \
    --guarantee "$guarantee" --app "$app" --state-dir "$state/$1" "${pass[@]}" "${@:2}"
}

clean=(--clean)
((keep)) && clean=()
if ((restore)); then
  dedup run
  rm -rf "${state:?}/run"
  dedup restored --restore "${clean[@]}"
else
  dedup run "${clean[@]}"
fi
