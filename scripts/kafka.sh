#!/usr/bin/env bash
# One real Kafka node on loopback, from jars: no container, no installed Kafka.
#
#   kafka.sh fetch                      copy the jars into the cache folder (once; about 126 MB)
#   kafka.sh start [--port N] [--dir D] start a node in the background and wait until it serves; prints `brokers 127.0.0.1:N`
#   kafka.sh stop [--dir D]             end that node, and only that one; its data stays in D
#   kafka.sh status [--dir D]           print where it listens; exit 1 when it does not run
#   kafka.sh run --port N --dir D [--with FILE] [--cluster ID]
#                                       the node in the foreground (the test fixture starts it this way); the
#                                       properties in FILE win over ours, and nodes of one cluster share an ID
#   kafka.sh guard --dir D              wait for the end of stdin, then kill the node in D and delete D
#
# Environment: HAPAX_CACHE (default ~/.cache/hapax), KAFKA_HEAP_OPTS (default -Xms256m -Xmx768m).
# Exit codes: 0 done, 1 failed, 2 wrong usage, 3 Java 17 or Maven is missing.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
self=$here/$(basename -- "${BASH_SOURCE[0]}")
pom=$here/../tests/kafka/pom.xml
version=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$pom")
cache=${HAPAX_CACHE:-$HOME/.cache/hapax}/kafka-$version
lib=$cache/lib

say() { echo "kafka: $*" >&2; }
fail() { say "$1"; exit "${2:-1}"; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$self" >&2; exit 2; }

# --- jars ------------------------------------------------------------------------------------------------------------

java_is_new_enough() {
    local major
    # "17.0.15" since Java 9, "1.8.0" before: either way the first number tells them apart.
    major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    [ -n "$major" ] && [ "$major" -ge 17 ]
}

# The stamp names the pom that the jars came from, so a changed version is fetched anew.
stamp() { cksum <"$pom"; }
fetched() { [ "$(cat "$lib/.complete" 2>/dev/null)" = "$(stamp)" ]; }

fetch() {
    java_is_new_enough || fail "Java 17 or newer is missing (scripts/setup.sh test)" 3
    if fetched; then return; fi
    command -v mvn >/dev/null || fail "Maven is missing (scripts/setup.sh test)" 3
    mkdir -p "$cache"
    # Two test runs may get here together. Each fills a folder of its own and renames it: no one ever sees half of it.
    local new=$cache/lib.$$ old=$cache/lib.old.$$
    trap 'rm -rf "$new" "$old"' EXIT
    say "fetching the jars of Kafka $version with Maven into $lib"
    # Even without colours it resets them: sed keeps those codes out of logs.
    mvn -q -B -Dstyle.color=never -f "$pom" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$new" </dev/null 2>&1 |
        sed -e $'s/\033\\[[0-9;]*m//g' -e '/^$/d' >&2 || fail "Maven could not fetch the jars"
    stamp >"$new/.complete"
    if ! fetched; then
        if [ -e "$lib" ]; then mv "$lib" "$old"; fi
        mv "$new" "$lib"
    fi
    rm -rf "$new" "$old"
    trap - EXIT
    fetched || fail "the jars in $lib are not those of $pom"
}

# --- one node --------------------------------------------------------------------------------------------------------

dir=$cache/node
port=
with=
cluster=
parse() {
    while [ $# -gt 0 ]; do
        case $1 in
        --port) [ $# -ge 2 ] || usage; port=$2 ;;
        --dir) [ $# -ge 2 ] || usage; dir=$2 ;;
        --with) [ $# -ge 2 ] || usage; with=$2 ;;
        --cluster) [ $# -ge 2 ] || usage; cluster=$2 ;;
        *) usage ;;
        esac
        shift 2
    done
    case $port in *[!0-9]*) fail "not a port: $port" 2 ;; esac
    mkdir -p "$dir"
    dir=$(cd -- "$dir" && pwd)
}

listens() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The broker takes N and the controller N+1. Both lie below the range from which systems hand out ports for outgoing
# connections: a port from that range can be taken by any client between two starts of the same node.
free_port() {
    local candidate
    while :; do
        candidate=$((20000 + (RANDOM % 6000) * 2))
        if ! listens "$candidate" && ! listens $((candidate + 1)); then
            echo "$candidate"
            return
        fi
    done
}

# What a process was started with; nothing once it is gone or a zombie. (Small systems come without ps.)
arguments_of() {
    if [ -d /proc/self ]; then
        { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null
    else
        ps -ww -o args= -p "$1" 2>/dev/null
    fi
}

# The pid of our node in $dir. A pid file may outlive its process, and the number may be handed out again, so the process
# must also be one that was started with this folder.
running_pid() {
    local pid
    pid=$(cat "$dir/pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && [[ $(arguments_of "$pid") == *"$dir"* ]] && echo "$pid"
}

running_port() { sed -n 's|^advertised.listeners=PLAINTEXT://127.0.0.1:||p' "$dir/server.properties"; }

settings() {
    cat <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$dir/data
auto.create.topics.enable=false
# One node: every internal topic has one replica, and few partitions, since each costs a start some time.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Tests join groups and kill members all the time: the defaults (3 s, 6 s) are made for members that stay.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A killed node must wait for the session of its former self before it may serve: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=8388608
log.cleaner.backoff.ms=1000
END
}

# An id of our own saves a JVM start. 16 bytes in url-safe base64; never a leading dash, which reads as an option.
random_id() { echo "A$(head -c 16 /dev/urandom | base64 | tr -d '=\n' | tr '+/' '-_' | cut -c 2-)"; }

run() {
    [ -n "$port" ] || usage
    fetched || fail "the jars are missing: $self fetch"
    # Of two lines for one property the later one counts.
    { settings; [ -z "$with" ] || cat "$with"; } >"$dir/server.properties"
    echo $$ >"$dir/pid"
    if [ ! -e "$dir/data/meta.properties" ]; then
        java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" \
            kafka.tools.StorageTool format -t "${cluster:-$(random_id)}" -c "$dir/server.properties"
    fi
    # exec: the pid written above, and the one that a parent knows, is the broker's.
    # shellcheck disable=SC2086  # several options in one variable
    exec java ${KAFKA_HEAP_OPTS:--Xms256m -Xmx768m} \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.showDateTime=true \
        -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info \
        -cp "$lib/*" kafka.Kafka "$dir/server.properties"
}

start() {
    local pid tries picked=$port
    if pid=$(running_pid); then
        [ -z "$port" ] || [ "$port" = "$(running_port)" ] ||
            fail "a node in $dir already listens on port $(running_port) (pid $pid)"
        echo "brokers 127.0.0.1:$(running_port)"
        return
    fi
    fetch
    for tries in 1 2 3; do
        port=${picked:-$(free_port)}
        if listens "$port" || listens $((port + 1)); then fail "port $port or $((port + 1)) is in use"; fi
        nohup "$self" run --port "$port" --dir "$dir" >"$dir/log" 2>&1 </dev/null &
        if serves $!; then
            echo "brokers 127.0.0.1:$port"
            return
        fi
        # Someone may have taken a picked port in the meantime; a given one gets no second try.
        if [ -n "$picked" ] || ! grep -q 'Address already in use' "$dir/log"; then break; fi
        say "port $port was taken; picking another ($tries)"
    done
    tail -n 20 "$dir/log" >&2
    fail "the node did not start; its log is $dir/log"
}

# The port answers a moment before the broker is unfenced and may lead partitions; the broker says so in its log.
serves() {
    local pid=$1
    local deadline=$((SECONDS + 90))
    while [ $SECONDS -lt $deadline ]; do
        kill -0 "$pid" 2>/dev/null || return 1
        if grep -q 'Kafka Server started' "$dir/log" && listens "$port"; then return 0; fi
        sleep 0.2
    done
    kill -KILL "$pid" 2>/dev/null || true
    return 1
}

stop() {
    local pid
    if ! pid=$(running_pid); then
        say "no node runs in $dir"
        return
    fi
    kill -TERM "$pid"
    local deadline=$((SECONDS + 30))
    while running_pid >/dev/null; do
        if [ $SECONDS -ge $deadline ]; then
            say "the node (pid $pid) did not stop in 30 s: killing it"
            kill -KILL "$pid" 2>/dev/null || true
            deadline=$((SECONDS + 30))
        fi
        sleep 0.1
    done
    rm -f "$dir/pid"
    say "stopped; its data is in $dir"
}

status() {
    local pid
    if pid=$(running_pid); then
        echo "brokers 127.0.0.1:$(running_port) (pid $pid, $dir)"
    else
        echo "not running ($dir)"
        return 1
    fi
}

# Kept by a test process at the other end of stdin: however that process ends, SIGKILL included, the system closes the
# pipe and the node goes too. Signals meant for the whole terminal must not end the guard first.
guard() {
    trap '' INT TERM HUP
    cat >/dev/null
    local pid
    if pid=$(running_pid); then kill -KILL "$pid" 2>/dev/null || true; fi
    # A killed process lets go of its files a moment later.
    while running_pid >/dev/null; do sleep 0.05; done
    rm -rf "$dir"
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
fetch) [ $# -eq 0 ] || usage; fetch; echo "jars $lib" ;;
start | stop | status | run | guard) parse "$@"; "$verb" ;;
*) usage ;;
esac
