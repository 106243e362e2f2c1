package hapax.peers;

import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.CloseOptions;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;

/**
 * A deduplicating Kafka Streams application that consumes a fixed number of messages, times itself
 * and leaves.
 *
 * <p>The clock starts when the first message reaches the processor and stops when the last one has
 * been through the topology. The application then closes, which commits, and the committed offsets
 * are read back from the broker: a run whose messages were not all forwarded and all committed is a
 * failure, not a figure.
 *
 * <p>With {@code --restore} it expects to find the topic already consumed under the same
 * application id and an empty state folder, and times the restoration of the store instead.
 */
public final class Dedup {
    private static final Duration CLOSE_WITHIN = Duration.ofMinutes(2);
    private static final Duration GIVE_UP_AFTER = Duration.ofMinutes(3);

    private final Args args;
    private final String app;
    private final String guarantee;
    private final AtomicReference<Throwable> failure = new AtomicReference<>();

    private Dedup(Args args) {
        this.args = args;
        this.app = args.text("app");
        this.guarantee = args.text("guarantee");
        if (!Set.of(StreamsConfig.AT_LEAST_ONCE, StreamsConfig.EXACTLY_ONCE_V2).contains(guarantee)) {
            throw new IllegalArgumentException(
                    "--guarantee " + guarantee + ": expected at_least_once or exactly_once_v2");
        }
    }

    public static void main(String[] argv) {
        int status = 1;
        try {
            Args args = new Args(
                    argv,
                    Set.of("brokers", "topic", "messages", "guarantee", "app", "state-dir", "threads",
                            "window-hours", "set"),
                    Set.of("restore", "clean"));
            Dedup dedup = new Dedup(args);
            if (args.has("restore")) {
                dedup.restore();
            } else {
                dedup.run();
            }
            if (args.has("clean")) {
                dedup.clean();
            }
            status = 0;
        } catch (IllegalArgumentException e) {
            System.err.println("streams: " + e.getMessage());
            status = 2;
        } catch (ExecutionException e) {
            System.err.println("streams: asking the broker: " + e.getCause());
        } catch (Exception e) {
            System.err.println("streams: " + e.getMessage());
            for (Throwable cause = e.getCause(); cause != null; cause = cause.getCause()) {
                System.err.println("  because: " + cause);
            }
        }
        // Streams threads that did not close in time must not keep the process alive.
        System.exit(status);
    }

    private void run() throws Exception {
        long expected = args.count("messages");
        long held = heldMessages();
        if (held != expected) {
            throw new IllegalArgumentException(String.format(
                    "topic %s holds %d messages, --messages says %d", args.text("topic"), held, expected));
        }
        Clock clock = new Clock(expected);
        AtomicLong forwarded = new AtomicLong();
        KafkaStreams streams = streams(clock, forwarded);
        streams.start();
        awaitWithProgress(clock.done, clock.left);
        close(streams);
        long closedNanos = System.nanoTime();

        long committed = committedMessages();
        if (forwarded.get() != expected || committed != expected) {
            throw new IllegalStateException(String.format(
                    "%d messages went in, %d were forwarded, %d committed: all three should be %d",
                    clock.entered.get(), forwarded.get(), committed, expected));
        }
        double seconds = (clock.lastNanos - clock.firstNanos) / 1e9;
        print("streams %s messages %d seconds %.3f rate %.0f rss_kb %d",
                guarantee, expected, seconds, expected / seconds, peakRssKb());
        System.err.printf(Locale.ROOT, "streams: all committed and closed %.3f s after the first message%n",
                (closedNanos - clock.firstNanos) / 1e9);
    }

    private void restore() throws Exception {
        Restoration restoration;
        try (Admin admin = admin()) {
            restoration = new Restoration(partitions(admin).size());
        }
        KafkaStreams streams = streams(new Clock(0), new AtomicLong());
        streams.setGlobalStateRestoreListener(restoration);
        streams.start();
        awaitWithProgress(restoration.done(), restoration.entries());
        close(streams);

        double seconds = restoration.nanos() / 1e9;
        long entries = restoration.entries().get();
        print("streams_restore %s entries %d seconds %.3f rate %.0f rss_kb %d",
                guarantee, entries, seconds, entries / seconds, peakRssKb());
    }

    /** Counts messages in and out of the processor; stamps the first in and the last out. */
    private static final class Clock implements FirstOnly.Probe {
        final CountDownLatch done = new CountDownLatch(1);
        final AtomicLong entered = new AtomicLong();
        final AtomicLong left = new AtomicLong();
        final long expected;
        // Each is written once, before the latch opens, and read after it.
        volatile long firstNanos;
        volatile long lastNanos;

        Clock(long expected) {
            this.expected = expected;
        }

        @Override
        public void enter() {
            if (entered.getAndIncrement() == 0) {
                firstNanos = System.nanoTime();
            }
        }

        @Override
        public void leave() {
            if (left.incrementAndGet() == expected) {
                lastNanos = System.nanoTime();
                done.countDown();
            }
        }
    }

    private KafkaStreams streams(Clock clock, AtomicLong forwarded) {
        Duration window = Duration.ofHours(args.count("window-hours", 24));
        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(args.text("topic"), Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
                .processValues(new FirstOnly(window, clock))
                .foreach((key, value) -> forwarded.incrementAndGet());

        KafkaStreams streams = new KafkaStreams(builder.build(), config());
        streams.setUncaughtExceptionHandler(e -> {
            failure.compareAndSet(null, e);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        return streams;
    }

    /** What is not set here is Kafka Streams' own default, on purpose. */
    private Properties config() {
        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, app);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args.text("brokers"));
        config.put(StreamsConfig.STATE_DIR_CONFIG, args.text("state-dir"));
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, args.small("threads", 2));
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, guarantee);
        config.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        for (String pair : args.all("set")) {
            int eq = pair.indexOf('=');
            if (eq < 1) {
                throw new IllegalArgumentException("--set " + pair + ": expected KEY=VALUE");
            }
            config.put(pair.substring(0, eq), pair.substring(eq + 1));
        }
        return config;
    }

    /** Waits for {@code done}; fails when a stream thread failed or {@code progress} stands still. */
    private void awaitWithProgress(CountDownLatch done, AtomicLong progress) throws Exception {
        long seen = -1;
        long movedNanos = System.nanoTime();
        while (!done.await(200, TimeUnit.MILLISECONDS)) {
            if (failure.get() != null) {
                throw new IllegalStateException("a stream thread failed", failure.get());
            }
            long now = progress.get();
            if (now != seen) {
                seen = now;
                movedNanos = System.nanoTime();
            } else if (System.nanoTime() - movedNanos > GIVE_UP_AFTER.toNanos()) {
                throw new IllegalStateException("no progress for " + GIVE_UP_AFTER + " after " + now + " messages");
            }
        }
    }

    /** Commits, and leaves the group, so that a second run need not wait for a session to expire. */
    private void close(KafkaStreams streams) {
        boolean closed = streams.close(
                CloseOptions.groupMembershipOperation(CloseOptions.GroupMembershipOperation.LEAVE_GROUP)
                        .withTimeout(CLOSE_WITHIN));
        if (!closed) {
            throw new IllegalStateException("not closed within " + CLOSE_WITHIN);
        }
        if (failure.get() != null) {
            throw new IllegalStateException("a stream thread failed", failure.get());
        }
    }

    private List<TopicPartition> partitions(Admin admin) throws Exception {
        String topic = args.text("topic");
        return admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().stream()
                .map(partition -> new TopicPartition(topic, partition.partition()))
                .toList();
    }

    private long heldMessages() throws Exception {
        try (Admin admin = admin()) {
            List<TopicPartition> partitions = partitions(admin);
            return sum(admin, partitions, OffsetSpec.latest()) - sum(admin, partitions, OffsetSpec.earliest());
        }
    }

    private static long sum(Admin admin, Collection<TopicPartition> partitions, OffsetSpec which) throws Exception {
        Map<TopicPartition, OffsetSpec> asked = new HashMap<>();
        partitions.forEach(partition -> asked.put(partition, which));
        return admin.listOffsets(asked).all().get().values().stream().mapToLong(found -> found.offset()).sum();
    }

    /** How far the group's committed offsets are from the start of the topic, all partitions together. */
    private long committedMessages() throws Exception {
        try (Admin admin = admin()) {
            Map<TopicPartition, OffsetAndMetadata> committed =
                    admin.listConsumerGroupOffsets(app).partitionsToOffsetAndMetadata().get();
            return committed.values().stream().mapToLong(OffsetAndMetadata::offset).sum()
                    - sum(admin, committed.keySet(), OffsetSpec.earliest());
        }
    }

    /** Removes what the run left on the broker: its changelog topics and its group. */
    private void clean() {
        try (Admin admin = admin()) {
            List<String> internal = admin.listTopics().names().get().stream()
                    .filter(name -> name.startsWith(app + "-"))
                    .toList();
            admin.deleteTopics(internal).all().get();
            admin.deleteConsumerGroups(List.of(app)).all().get();
        } catch (Exception e) {
            // The figure is already printed and stands; what is left costs disk only.
            System.err.println("streams: could not clean up after " + app + ": " + e.getMessage());
        }
    }

    private Admin admin() {
        return Admin.create(Map.of(
                "bootstrap.servers", args.text("brokers"),
                "request.timeout.ms", "10000",
                "default.api.timeout.ms", "20000"));
    }

    private static void print(String format, Object... values) {
        System.out.printf(Locale.ROOT, format + "%n", values);
        System.out.flush();
    }

    /** The peak resident set of this process as the kernel counts it; 0 where it does not say. */
    private static long peakRssKb() throws Exception {
        Path status = Path.of("/proc/self/status");
        if (!Files.isReadable(status)) {
            return 0;
        }
        return Files.readAllLines(status).stream()
                .filter(line -> line.startsWith("VmHWM:"))
                .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")))
                .findFirst()
                .orElse(0);
    }
}
