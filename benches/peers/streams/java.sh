# Sourced by run.sh and load.sh: `run_java MAIN ARGS…` runs one of the main
# classes and passes SIGINT and SIGTERM on to it, so that a caller that stops the
# script stops the JVM as well. Two classes whose warnings are advice about defaults
# (an exception handler for 5.0, a state folder under the temporary one) are quiet.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lib=$("$here/../build.sh" streams)

run_java() {
  local heap=$1 main=$2 child status=0
  shift 2
  # shellcheck disable=SC2086 # HAPAX_PEER_JAVA_OPTS is a list of words.
  java "-Xmx$heap" ${HAPAX_PEER_JAVA_OPTS:-} \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.streams.StreamsConfig=error \
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.streams.processor.internals.StateDirectory=error \
    -cp "$lib/*" "hapax.peers.$main" "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM
  wait "$child" || status=$?
  # A trapped signal ends the first wait early: reap the child for real.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  trap - INT TERM
  return "$status"
}
