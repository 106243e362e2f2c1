#!/usr/bin/env bash
# build.sh PEER: builds the Java peer in that folder beside this script, and prints the folder with its jars.
#
# Output goes to $HAPAX_CACHE (default ~/.cache/hapax), never into the checkout.
# A stamp over the pom and the sources makes an unchanged build instant; a lock
# keeps two callers from building at once.
set -euo pipefail

peer=${1:?usage: build.sh PEER}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/$peer" && pwd)
out=${HAPAX_CACHE:-$HOME/.cache/hapax}/peers/$peer

for tool in java mvn; do
  if ! command -v "$tool" >/dev/null; then
    echo "peers/$peer: '$tool' is missing (install a JDK 17 or later, and Maven)" >&2
    exit 3
  fi
done

mkdir -p "$out"
exec 9>"$out/.lock"
flock 9

stamp=$(cd "$here" && find pom.xml src -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
if [[ ! -f $out/.stamp || $(<"$out/.stamp") != "$stamp" ]]; then
  rm -rf "$out/.stamp" "$out/lib" "$out/target"
  echo "peers/$peer: building into $out" >&2
  mvn -q -B -ntp -f "$here/pom.xml" -Dhapax.out="$out" package >&2
  printf '%s' "$stamp" >"$out/.stamp"
fi
echo "$out/lib"
